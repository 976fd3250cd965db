"""Whole phases in virtual time: every prompt is trained once, none too late, whatever dies, hangs, goes or comes."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from scripted.virtual import Drawn, VirtualRollout
from scripted.virtual_run import SUPERVISION, VirtualRun

from minillm_ray.config.errors import RunError
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.replicas import Supervision
from minillm_ray.pipeline.training import RoundPlan, Step

Fault = Callable[[VirtualRun], None]


def plan(**changes: Any) -> RoundPlan:
    return RoundPlan(
        **(
            {"rollouts": 4, "minibatch": 2, "inner_epochs": 1, "rounds": 6, "max_staleness": 1, "mixed": False}
            | changes
        )
    )


def once(condition: Callable[[VirtualRun], bool], act: Fault) -> Fault:
    """For `on_turn`: act when the condition first holds."""
    done: list[bool] = []

    def on_turn(run: VirtualRun) -> None:
        if not done and condition(run):
            done.append(True)
            act(run)

    return on_turn


def after_steps(count: int) -> Callable[[VirtualRun], bool]:
    return lambda run: len(run.steps) >= count


def break_one(role: str, fault: str, number: int = 0) -> Fault:
    def act(run: VirtualRun) -> None:
        getattr(run.members(role)[number].client, fault)()

    return act


def by_step(run: VirtualRun) -> dict[int, list[Drawn]]:
    """What each optimizer step trained, as it was done last."""
    return {step.step: step.reports[0].given for step in run.steps}


def lose_objects(run: VirtualRun, rng: random.Random) -> None:
    """A node goes: some of what is drawn and scored was there."""
    for response in [*run.training._responses.values(), *run.crew.responses._scoring]:
        if rng.random() < 0.5:
            rng.choice([response.trajectory, response.payload]).is_lost = True


@pytest.mark.parametrize("seed", range(40))
def test_any_schedule_of_faults_trains_every_prompt_once_and_none_too_late(seed: int) -> None:
    """Deaths, hangs, lost objects and changes of size at random moments, in sync and async, mixed and not."""
    rng = random.Random(seed)
    asked: dict[str, int] = {}

    def requests() -> dict[str, int]:
        taken = dict(asked)
        asked.clear()
        return taken

    run = VirtualRun(
        plan(
            rollouts=rng.choice([2, 4, 6]),
            rounds=rng.randint(1, 10),
            max_staleness=rng.randint(0, 3),
            mixed=rng.random() < 0.5,
        ),
        seed=seed,
        rollouts=rng.randint(1, 4),
        teachers=rng.randint(1, 3),
        ranks=rng.randint(1, 2),
        text=rng.choice([None, (1, True), (2, True), (1, False)]),
        every_steps=rng.choice([1, 3, 5]),
        requests=requests,
    )

    def fault() -> None:
        role, kind = rng.choice(list(run.sets)), rng.choice(["die", "hang", "stand still", "scale", "lose objects"])
        clients = run.clients(role)
        if kind == "scale" and role != "learner":
            asked[role] = rng.randint(1, 5)
        elif kind == "lose objects":
            lose_objects(run, rng)
        elif clients and kind == "stand still":
            rng.choice(clients).beat_age = 1000.0
        elif clients and kind in ("die", "hang"):
            getattr(rng.choice(clients), kind)()

    for _ in range(rng.randint(0, 8)):
        run.cluster.after(rng.uniform(0.0, 50.0), fault)
    assert run.run()
    run.check()
    if run.text is not None:
        last = {step.step: step.reports[0].texts for step in run.steps}
        assert [number for step in sorted(last) for number in last[step]] == list(range(len(last) * run.text[0]))


def test_without_staleness_the_roles_work_in_turn() -> None:
    """A round's prompts start together, at the weights that the round trains, in shares that differ by one at most."""
    run = VirtualRun(plan(max_staleness=0, rollouts=6), rollouts=4)
    assert run.run()
    run.check()
    for member in run.members("rollout"):
        assert isinstance(member.client, VirtualRollout)
        groups = [together for _, together in member.client.asked]
        assert {size for _, size, _ in groups} <= {1, 2}  # type: ignore[misc]
    assert all(drawn.versions == (1 + number // 6,) * 2 for number, drawn in enumerate(run.trained))
    assert [step.is_on_policy for step in run.steps] == [True, False, False] * 6


def test_with_staleness_responses_are_drawn_while_a_round_trains() -> None:
    """And weights change between the tokens of one response."""
    slow_steps = VirtualRun(plan(rounds=10), rollouts=2)
    assert slow_steps.run()
    assert any(len(set(drawn.versions)) == 2 for drawn in slow_steps.trained)
    in_turn = VirtualRun(plan(rounds=10, max_staleness=0), rollouts=2)
    assert in_turn.run()
    assert slow_steps.cluster.now < 0.8 * in_turn.cluster.now


def test_a_replica_takes_no_more_than_its_share() -> None:
    """Though one pulls new weights much sooner than the others."""
    run = VirtualRun(plan(rollouts=8, minibatch=8, rounds=20), rollouts=4)
    heaviest: list[int] = []

    def on_turn(run: VirtualRun) -> None:
        for number, client in enumerate(run.clients("rollout")):
            client._pull_seconds = 0.1 * (number + 1)  # type: ignore[attr-defined]
        if len(run.steps) > 2:
            heaviest.append(max(member.load for member in run.members("rollout")))

    run.on_turn = on_turn
    assert run.run()
    assert max(heaviest) <= 4


def test_the_order_of_training_does_not_depend_on_who_died() -> None:
    """Without staleness: a killed sampler, teacher or learner leaves every step as it would have been."""
    undisturbed = VirtualRun(plan(max_staleness=0))
    assert undisturbed.run()
    for role in ("rollout", "teacher", "learner"):
        run = VirtualRun(plan(max_staleness=0), on_turn=once(after_steps(5), break_one(role, "die")))
        assert run.run()
        assert f"{role}_lost" in run.kinds()
        assert by_step(run) == by_step(undisturbed)
        assert run.trained == undisturbed.trained


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_lost_learner_goes_back_to_the_last_checkpoint(fault: str) -> None:
    """Steps since then are made again; every step is reported for the state it made."""
    run = VirtualRun(plan(rounds=10), every_steps=4, on_turn=once(after_steps(11), break_one("learner", fault)))
    assert run.run()
    run.check()
    [went_back] = run.told("went_back")
    assert went_back["step"] == 8
    steps = [step.step for step in run.steps]
    assert [second for first, second in pairwise(steps) if second != first + 1] == [9]
    assert all(len(step.reports[0].trained) == 2 * step.step for step in run.steps)


def test_a_learner_that_is_lost_before_any_checkpoint_begins_anew() -> None:
    """With the first prompts."""
    run = VirtualRun(plan(), every_steps=100, on_turn=once(after_steps(3), break_one("learner", "die")))
    assert run.run()
    run.check()
    assert run.told("went_back") == [{"step": 0}]


def test_a_checkpoint_keeps_finished_responses_and_they_are_not_drawn_again() -> None:
    """After a learner's death they are scored anew and trained."""
    run = VirtualRun(
        plan(max_staleness=3, rounds=10),
        every_steps=4,
        rollouts=4,
        on_turn=once(
            lambda run: any(progress.responses for _, progress, _ in run.checkpoints.kept),
            break_one("learner", "die"),
        ),
    )
    assert run.run()
    run.check()
    kept = next(progress.responses for _, progress, _ in run.checkpoints.kept if progress.responses)
    tasks = [task for launcher in [run.launchers["rollout"]] for actor in launcher.started for task, _ in actor.asked]  # type: ignore[attr-defined]
    for untrained in kept:
        drawn = untrained.trajectory.get()
        assert drawn in run.trained
        assert tasks.count(drawn.task) == 1


def test_finished_responses_that_a_lower_bound_makes_too_old_are_drawn_again() -> None:
    """A run that is resumed with another max_staleness."""
    first = VirtualRun(plan(max_staleness=3), rollouts=4, every_steps=2)
    first.stop_asked = lambda: any(
        min((item.version for item in progress.responses), default=99) < progress.rounds
        for _, progress, _ in first.checkpoints.kept
    )
    assert not first.run()
    second = VirtualRun(plan(max_staleness=0))
    second.checkpoints.kept, second.checkpoints.disk = first.checkpoints.kept, second.disk
    second.disk.update(first.disk)
    assert second.run()
    drawn = second.trained[len(first.trained) :]
    assert all(len(set(one.versions)) == 1 for one in drawn)
    assert sorted(one.task.prompt_index for one in second.trained[:20]) == list(range(20))


def test_a_run_that_is_asked_to_stop_ends_after_its_round_with_a_checkpoint() -> None:
    """And the next run goes on from there, as if nothing had happened."""
    first = VirtualRun(plan(max_staleness=0), every_steps=100)
    first.stop_asked = after_steps(5).__get__(first)  # type: ignore[attr-defined]
    assert not first.run()
    assert [step.step for step in first.steps] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _, _ in first.checkpoints.kept] == [6]
    second = VirtualRun(plan(max_staleness=0))
    second.checkpoints.kept = first.checkpoints.kept
    second.disk.update(first.disk)
    assert second.run()
    whole = VirtualRun(plan(max_staleness=0))
    assert whole.run()
    assert by_step(first) | by_step(second) == by_step(whole)
    assert second.trained == whole.trained


def test_a_run_without_a_learner_stops_at_once() -> None:
    """Nothing is lost by that: it was about to go back to the last checkpoint."""
    run = VirtualRun(plan(rounds=10), every_steps=4, on_turn=once(after_steps(9), break_one("learner", "die")))
    run.stop_asked = lambda: len(run.steps) >= 9 and run.crew.learner.learner is None
    assert not run.run()
    assert [step for step, _, _ in run.checkpoints.kept] == [4, 8]


def test_a_full_disk_is_told_and_the_run_goes_on() -> None:
    """To its end; a later checkpoint is tried in its turn."""
    run = VirtualRun(plan(rounds=6), every_steps=4)
    run.on_turn = lambda run: setattr(run.checkpoints, "fails", len(run.steps) < 7)
    assert run.run()
    run.check()
    assert run.told("checkpoint_failed") == [{"step": 4}]
    assert [fields["step"] for fields in run.told("checkpoint_saved")] == [8, 12]


def test_a_run_whose_last_checkpoint_cannot_be_written_ends_all_the_same() -> None:
    """It is done: the caller has the weights."""
    run = VirtualRun(plan(rounds=2))
    run.checkpoints.fails = True
    assert run.run()


def test_inputs_that_went_with_a_node_are_drawn_again_and_trained_in_the_same_round() -> None:
    """Where the round has trained nothing yet, nobody goes back."""
    rng = random.Random(1)
    run = VirtualRun(plan(minibatch=4, max_staleness=0), text=(1, True))
    run.on_turn = once(
        lambda run: len(run.training._responses) == 4 and len(run.steps) == 2, lambda run: lose_objects(run, rng)
    )
    assert run.run()
    run.check()
    assert run.told("learner_lost") == []
    assert [report for step in run.steps for report in step.reports[0].texts] == list(range(6))
    tasks = [task for actor in run.launchers["rollout"].started for task, _ in actor.asked]  # type: ignore[attr-defined]
    assert len(tasks) > 24


def test_inputs_that_are_lost_when_a_round_has_begun_to_train_send_the_learner_back() -> None:
    """The whole round is made again: it is trained whole or not at all."""

    def lose_second_minibatch(run: VirtualRun) -> None:
        for ticket in run.training._batch[2:]:  # type: ignore[index]
            run.training._responses[ticket].payload.is_lost = True

    run = VirtualRun(plan(max_staleness=0), every_steps=2)
    run.on_turn = once(lambda run: len(run.steps) == 5, lose_second_minibatch)
    assert run.run()
    run.check()
    [lost] = run.told("learner_lost")
    assert lost["reason"] == "responses of the round in progress went with a node"
    assert run.told("went_back") == [{"step": 4}]


def test_several_passes_over_a_round_train_it_in_the_same_order_each_time() -> None:
    """inner_epochs."""
    run = VirtualRun(plan(inner_epochs=2, rounds=2, max_staleness=0))
    assert run.run()
    steps = [step.reports[0].given for step in run.steps]
    assert steps[:2] == steps[2:4]
    assert [step.round is not None for step in run.steps] == [False, False, False, True] * 2


def test_a_replica_that_is_lost_again_and_again_ends_the_run() -> None:
    """With status 1: RunError."""
    strict = Supervision(60.0, 6.0, 100.0, max_restarts_per_hour=2)
    run = VirtualRun(plan(rounds=100), supervision=strict)
    run.on_turn = lambda run: (
        run.clients("teacher")[0].die() if run.steps and run.members("teacher")[0].client is not None else None
    )
    with pytest.raises(RunError, match="teacher 0 was lost 3 times"):
        run.run()


def test_no_sampler_that_joins_makes_anything_late() -> None:
    """Growing from one to five and back while the run goes on."""
    wanted = [(4, {"rollout": 5}), (12, {"rollout": 1})]
    run = VirtualRun(plan(rounds=15, rollouts=6, max_staleness=2), rollouts=1)
    run.crew._requests = lambda: wanted.pop(0)[1] if wanted and len(run.steps) >= wanted[0][0] else {}
    assert run.run()
    run.check()
    assert len(run.members("rollout")) == 1
    assert run.kinds().count("rollout_drained") == 4


def test_mixed_responses_wait_for_a_teacher_and_others_do_not() -> None:
    """The teacher needs longer to load."""
    for mixed, asked_before in ((True, False), (False, True)):
        run = VirtualRun(plan(mixed=mixed))
        run.launchers["teacher"].place_seconds = 30.0
        early: list[Task] = []

        def on_turn(run: VirtualRun, early: list[Task] = early) -> None:
            if run.cluster.now < 30.0:
                early += [task for actor in run.clients("rollout") for task, _ in actor.asked]  # type: ignore[attr-defined]

        run.on_turn = on_turn
        assert run.run()
        assert bool(early) is asked_before


def test_what_a_step_hears_is_told_in_order_and_an_error_there_ends_the_run() -> None:
    """A recorder that finds the gradient not finite too often, say."""
    run = VirtualRun(plan())
    run.steps = _Refusing(run.steps)  # type: ignore[assignment]
    with pytest.raises(RunError, match="not finite"):
        run.run()


class _Refusing(list[Step]):
    def append(self, step: Step) -> None:
        super().append(step)
        if len(self) == 3:
            raise RunError("the gradient was not finite")


def test_the_numbers_of_a_round_come_with_its_last_step() -> None:
    """Its version, responses in the order of training, and its time."""
    run = VirtualRun(plan(max_staleness=0), supervision=SUPERVISION)
    assert run.run()
    rounds = [step.round for step in run.steps if step.round is not None]
    assert [one.version for one in rounds] == list(range(1, 7))
    trained = [response.trajectory.get() for one in rounds for response in one.responses]
    assert trained == run.trained
    assert sum(one.seconds for one in rounds) == pytest.approx(run.cluster.now, abs=3.0)
