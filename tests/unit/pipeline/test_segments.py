"""A phase that stops now and then to be measured trains what it would have trained in one go."""

from dataclasses import replace
from typing import Any

import pytest
from scripted.virtual_run import VirtualRun

from minillm_ray.pipeline.training import RoundPlan, Training


def plan(**changes: Any) -> RoundPlan:
    sizes = {"rollouts": 4, "minibatch": 2, "inner_epochs": 1, "rounds": 6, "max_staleness": 0, "mixed": False}
    return RoundPlan(**(sizes | changes))


def go_on(run: VirtualRun, rounds: int) -> None:
    """Another training on the same crew, from where the one before it ended, up to `rounds`."""
    run.plan = replace(run.plan, rounds=rounds)
    run.training = Training(
        run.crew,
        run.ledger,
        run.plan,
        run.training.progress,
        run.checkpoints,
        on_step=run.steps.append,
        plain_text=run.text_supply,
        clock=run.cluster.clock,
    )
    assert run.training.run()


def in_segments(whole: RoundPlan, ends: list[int], **settings: Any) -> VirtualRun:
    run = VirtualRun(replace(whole, rounds=ends[0]), **settings)
    assert run.run()
    for rounds in ends[1:]:
        go_on(run, rounds)
    return run


@pytest.mark.parametrize("text", [None, (2, True)])
def test_in_sync_mode_the_same_responses_are_trained_in_the_same_order(text: tuple[int, bool] | None) -> None:
    """Step for step, plain text included; steps are counted on."""
    whole = VirtualRun(plan(), text=text)
    assert whole.run()
    parts = in_segments(plan(), [1, 4, 6], text=text)
    assert [drawn.task for drawn in parts.trained] == [drawn.task for drawn in whole.trained]
    assert [step.step for step in parts.steps] == [step.step for step in whole.steps] == list(range(1, 13))


@pytest.mark.parametrize("max_staleness", [1, 3])
def test_in_async_mode_every_prompt_is_trained_once_and_none_too_late(max_staleness: int) -> None:
    """Each segment ends with nothing in hand, so that a measurement has the samplers for itself."""
    run = in_segments(plan(max_staleness=max_staleness), [2, 3, 6])
    assert run.crew.responses.num_under_way == 0
    run.check()


def test_every_segment_ends_with_its_state_on_disk_and_its_weights_pulled() -> None:
    """What is measured is what is trained on, and what a learner that falls meanwhile takes up."""
    run = in_segments(plan(), [2], every_steps=100)
    assert run.checkpoints.tried == 4
    assert run.crew.all_pulled
    go_on(run, 3)
    assert run.checkpoints.tried == 6
    assert run.crew.all_pulled


def test_a_learner_that_falls_between_two_segments_is_there_for_the_next() -> None:
    """It takes up the state that the segment ended with; nothing is trained twice."""
    run = in_segments(plan(), [2])
    checkpoints, learner = run.checkpoints, run.crew.learner
    learner.on_lost = lambda: setattr(learner, "restore_from", checkpoints.go_back()[1])
    learner.on_ready = lambda: None
    learner.restart("for the test")
    run.crew.turn_until(lambda: learner.learner is not None)
    go_on(run, 6)
    run.check()
