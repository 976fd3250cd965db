"""Roles take turns: no round begins before every rollout replica holds the weights that the last one made."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted.roles import ScriptedRoles

from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.synchronous import PipelineStep, RoundPlan, RoundTimes, SynchronousPipeline


def make_pipeline(
    plan: RoundPlan, *, num_prompts: int = 100, clock: Callable[[], float] = lambda: 0.0
) -> tuple[SynchronousPipeline, ScriptedRoles]:
    roles = ScriptedRoles()
    return SynchronousPipeline(roles, roles, roles, Ledger(num_prompts, seed=1), plan, clock=clock), roles


def ticking() -> Callable[[], float]:
    """A clock that is one second later every time it is read."""
    ticks = iter(range(10_000))
    return lambda: float(next(ticks))


def test_the_order_of_events_is_that_of_the_algorithm() -> None:
    """Weights first, then round after round, and new weights before the next."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=4, minibatch=4, inner_epochs=1))
    list(pipeline.steps(2))
    round_events = ["generate", "score", "step", "publish", "pull"]
    assert roles.events == ["publish", "pull", *round_events, *round_events]


def test_a_round_has_each_minibatch_once_in_each_inner_epoch() -> None:
    """6 rollouts in minibatches of 2, twice over: 6 steps, and one publication at the end."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=6, minibatch=2, inner_epochs=2))
    steps = list(pipeline.steps(6))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert roles.events == ["publish", "pull", "generate", "score", *["step"] * 6, "publish", "pull"]
    trained = [call[1] for call in roles.calls if call[0] == "step"]
    assert all(len(minibatch) == 2 for minibatch in trained)
    assert trained[:3] == trained[3:]
    assert len({reference for minibatch in trained[:3] for reference in minibatch}) == 6


def test_every_response_is_trained_with_what_the_teacher_said_of_it() -> None:
    """Trajectories and payloads stay side by side through the cut into minibatches."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=6, minibatch=3, inner_epochs=1))
    list(pipeline.steps(4))
    for _, trajectories, payloads, *_ in (call for call in roles.calls if call[0] == "step"):
        assert payloads == [f"hidden of {reference}" for reference in trajectories]


plans = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20), st.integers(1, 4))


@given(plans)
def test_no_response_is_drawn_before_the_newest_weights_are_pulled(numbers: tuple[int, ...]) -> None:
    """Whatever the sizes, prompts fewer than rollouts included: the samplers are at the version just published."""
    minibatches, minibatch, inner_epochs, num_prompts, rounds = numbers
    plan = RoundPlan(minibatches * minibatch, minibatch, inner_epochs)
    pipeline, roles = make_pipeline(plan, num_prompts=num_prompts)
    steps = list(pipeline.steps(rounds * minibatches * inner_epochs))
    assert len(steps) == roles.num_steps == rounds * minibatches * inner_epochs
    published, pulled, drawn_at = 0, 0, []
    for call in roles.calls:
        if call[0] == "publish":
            assert call[1] == published + 1
            published = call[1]
        elif call[0] == "pull":
            assert call[1:] == (f"manifest {published}", [f"buffer {published}"], published)
            pulled = published
        elif call[0] == "generate":
            assert pulled == published
            drawn_at.append(pulled)
    assert sorted(set(drawn_at)) == list(range(1, rounds + 1))
    assert pipeline.version == rounds + 1


def test_a_consumer_that_stops_leaves_the_next_round_unbegun() -> None:
    """Steps are made as they are asked for; the weights of a finished round are pulled by then."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=2, minibatch=2, inner_epochs=1))
    steps = pipeline.steps(100)
    next(steps)
    assert roles.events == ["publish", "pull", "generate", "score", "step", "publish", "pull"]
    next(steps)
    assert roles.events.count("generate") == 2


def test_the_prompts_are_those_of_the_ledger_in_its_order() -> None:
    """Of the training split, and the epoch tells apart two responses to one prompt."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=4, minibatch=4, inner_epochs=1), num_prompts=3)
    list(pipeline.steps(1))
    expected = Ledger(3, seed=1).take(4)
    asked = [(index, draw) for _, split, indices, draw in generated(roles) for index in indices if split == "train"]
    assert asked == [(assignment.prompt_index, assignment.epoch) for assignment in expected]
    assert [draw for _, _, _, draw in generated(roles)] == [0, 1]


def generated(roles: ScriptedRoles) -> Iterator[tuple]:
    return (call for call in roles.calls if call[0] == "generate")


def test_a_round_may_use_more_prompts_than_there_are() -> None:
    """Each use of a prompt is another draw, so no two responses of a round are the same by design."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=7, minibatch=7, inner_epochs=1), num_prompts=2)
    list(pipeline.steps(1))
    (step,) = [call for call in roles.calls if call[0] == "step"]
    assert len(set(step[1])) == 7


def test_plain_text_comes_with_every_step_where_there_is_any() -> None:
    """The next chunks for each optimizer step, with what the teacher says of them; none without a supply."""
    roles = ScriptedRoles()
    plan = RoundPlan(rollouts=4, minibatch=2, inner_epochs=1)
    list(SynchronousPipeline(roles, roles, roles, Ledger(9, seed=1), plan, plain_text=roles).steps(4))
    given = [call[3:] for call in roles.calls if call[0] == "step"]
    assert given == [([f"text {k}"], [f"hidden of text {k}"]) for k in (1, 2, 3, 4)]
    pipeline, roles = make_pipeline(plan)
    list(pipeline.steps(2))
    assert [call[3:] for call in roles.calls if call[0] == "step"] == [([], []), ([], [])]


def test_times_are_measured_around_the_calls_and_come_with_the_last_step_of_a_round() -> None:
    """By the clock that was given; the payload's bytes are what the teacher said."""
    pipeline, _ = make_pipeline(RoundPlan(rollouts=4, minibatch=2, inner_epochs=1), clock=ticking())
    first, second = pipeline.steps(2)
    assert first == PipelineStep(1, ["report 1"], 1.0, None)
    assert second == PipelineStep(2, ["report 2"], 1.0, RoundTimes(1.0, 1.0, 1.0, 40))


def test_an_error_in_a_role_stops_the_round_where_it_is() -> None:
    """Nothing is trained on half a round, and nothing is published after it."""
    pipeline, roles = make_pipeline(RoundPlan(rollouts=2, minibatch=2, inner_epochs=1))

    def fail(trajectories: object) -> None:
        raise RuntimeError("teacher died")

    roles.score = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError, match="teacher died"):
        list(pipeline.steps(1))
    assert roles.events == ["publish", "pull", "generate"]
