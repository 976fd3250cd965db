"""The crew as a whole: weights reach every sampler, replicas come and go as asked, responses are collected."""

from typing import Any

import pytest
from scripted.virtual import VirtualRollout
from scripted.virtual_run import VirtualRun

from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.training import RoundPlan

PLAN = RoundPlan(rollouts=2, minibatch=2, inner_epochs=1, rounds=1, max_staleness=0, mixed=False)


class Bed(VirtualRun):
    """A crew alone; nobody trains on it."""

    def __init__(self, *, publish: int | None = 1, **changes: Any) -> None:
        super().__init__(PLAN, **changes)
        self.sets["rollout"].scale(self.rollouts)
        self.sets["teacher"].scale(self.teachers)
        if publish is not None:
            self.crew.learner.on_ready = lambda: self.crew.publish(publish)
        self.crew.learner.start(1, restore_from=None)
        self.pass_time(5.0)

    def pass_time(self, seconds: float) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.crew.turn()

    @property
    def versions(self) -> list[int]:
        return [client.version for client in self.clients("rollout") if isinstance(client, VirtualRollout)]


def test_every_sampler_pulls_what_is_published() -> None:
    """The time from its beginning to the last pull is known."""
    bed = Bed(rollouts=3)
    bed.crew.publish(2)
    assert bed.crew.up_to_date == []
    bed.pass_time(2.0)
    assert bed.versions == [2, 2, 2]
    assert bed.crew.all_pulled
    assert 0.05 < bed.crew.pull_seconds < 1.0


def test_a_sampler_that_starts_is_stale_until_it_has_pulled() -> None:
    """It serves, but counts neither as fresh nor as up to date."""
    bed = Bed(publish=None)
    assert len(bed.crew.rollout.serving) == 2
    assert (bed.crew.fresh, bed.crew.up_to_date, bed.crew.all_pulled) == ([], [], False)
    bed.crew.publish(1)
    bed.pass_time(2.0)
    assert bed.crew.fresh == bed.crew.up_to_date == bed.crew.rollout.serving


def test_one_that_joins_late_pulls_the_newest_at_once() -> None:
    """Nobody publishes anew for it."""
    bed = Bed()
    bed.crew.publish(2)
    bed.crew.rollout.scale(3)
    bed.pass_time(5.0)
    assert bed.versions == [2, 2, 2]
    assert bed.crew.learner.learner.published == [1, 2]


def test_a_pull_that_is_overtaken_is_followed_by_another() -> None:
    """Until then the replica is stale: what it holds is neither."""
    bed = Bed(rollouts=1)
    [member] = bed.crew.rollout.members
    member.client._pull_seconds = 1.0
    bed.crew.publish(2)
    bed.pass_time(0.5)
    bed.crew.publish(3)
    bed.pass_time(0.8)
    assert bed.crew.fresh == []
    bed.pass_time(3.0)
    assert (bed.versions, member.version) == ([3], 3)


def test_weights_that_are_no_longer_true_are_pulled_by_nobody() -> None:
    """A learner went back: replicas wait for what it publishes then, though the number is the same."""
    bed = Bed()
    bed.crew.forget_weights()
    bed.crew.rollout.scale(3)
    bed.pass_time(5.0)
    assert (bed.crew.fresh, bed.crew.version) == ([], 0)
    bed.crew.publish(1)
    bed.pass_time(2.0)
    assert len(bed.crew.up_to_date) == 3


def test_the_crew_grows_and_shrinks_as_asked() -> None:
    """Either role, while the rest goes on."""
    wanted = [{"rollout": 3}, {"rollout": 1, "teacher": 1}]
    bed = Bed()
    for asked, rollouts, teachers in ((wanted[0], 3, 2), (wanted[1], 1, 1)):
        asks = [asked]
        bed.crew._requests = lambda asks=asks: asks.pop() if asks else {}  # type: ignore[misc]
        bed.pass_time(5.0)
        assert (len(bed.crew.rollout.serving), len(bed.crew.teacher.serving)) == (rollouts, teachers)


@pytest.mark.parametrize("role", ["rollout", "teacher"])
@pytest.mark.parametrize("fault", ["die", "hang"])
def test_responses_are_collected_in_order_whatever_dies(role: str, fault: str) -> None:
    """All of them, once each."""
    bed = Bed()
    bed.cluster.after(0.7, lambda: getattr(bed.clients(role)[0], fault)())
    tasks = [Task("held_out", number, 0, mixed=False) for number in range(7)]
    responses = bed.crew.collect(tasks)
    assert [response.trajectory.get().task for response in responses] == tasks
    assert f"{role}_lost" in bed.kinds()


def test_the_learner_is_asked_again_where_it_fell() -> None:
    """The group that comes back answers."""
    bed = Bed()
    bed.cluster.after(0.3, lambda: bed.clients("learner")[0].die())
    answers = bed.crew.ask_learner(
        lambda learner: [rank.in_turn(1.0, lambda: "answer") for rank in learner.ranks], "asking"
    )
    assert answers == ["answer"]
    assert bed.told("learner_lost")[0]["reason"].startswith("asking: ActorDiedError")
