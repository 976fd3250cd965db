"""The learner's ranks rise and fall together."""

from pathlib import Path
from typing import Any

import pytest
from scripted.virtual import VirtualCluster, VirtualLauncher, VirtualRank, VirtualRanks

from minillm_ray.pipeline.learner_ranks import LearnerRanks
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import ReplicaSet, Supervision

SAVED = Path("step-000004")


class Bed:
    """A group of virtual ranks; story: what its owner was told; groups: every assembly so far."""

    def __init__(self, size: int = 2, *, restore_from: Path | None = None) -> None:
        self.cluster = VirtualCluster()
        self._reactor = Reactor(
            self.cluster.clock, ready_among=self.cluster.ready_among, value_of=self.cluster.value_of
        )
        self.launcher = VirtualLauncher(self.cluster, lambda number: VirtualRank(self.cluster, number, 1.0))
        self.lost: list[dict[str, Any]] = []
        self.story: list[str] = []
        self.groups: list[VirtualRanks] = []
        self.ranks = ReplicaSet(
            "learner",
            self.launcher,
            self._reactor,
            Supervision(30.0, 6.0, 100.0, 10),
            write_event=lambda kind, fields: self.lost.append(dict(fields)) if kind == "learner_lost" else None,
            message=lambda text: None,
            clock=self.cluster.clock,
        )
        self.learner = LearnerRanks(self.ranks, self._assemble, startup_seconds=20.0)
        self.learner.on_ready = lambda: self.story.append("ready")
        self.learner.on_lost = lambda: self.story.append("lost")
        self.learner.start(size, restore_from=restore_from)
        self.pass_time(5.0)

    def _assemble(self, clients: Any) -> VirtualRanks:
        self.groups.append(VirtualRanks(clients, {SAVED: ["saved"]}))  # type: ignore[list-item]
        return self.groups[-1]

    def pass_time(self, seconds: float) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.ranks.turn()
            self._reactor.turn(0.25)

    def rank(self, number: int) -> Any:
        return self.ranks.members[number].client


def test_the_group_is_ready_once_all_ranks_have_met() -> None:
    """And not before."""
    bed = Bed(3)
    assert bed.story == ["ready"]
    assert bed.learner.learner is bed.groups[0]
    assert [rank.trained for rank in bed.groups[0].ranks] == [[], [], []]


def test_every_rank_takes_up_the_checkpoint() -> None:
    """Before the group works."""
    bed = Bed(2, restore_from=SAVED)
    assert [rank.trained for rank in bed.groups[0].ranks] == [["saved"], ["saved"]]


@pytest.mark.parametrize("fault", ["die", "hang"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_is_lost_takes_the_group_with_it(fault: str, number: int) -> None:
    """All ranks are new, meet, and load what their owner says by then; one loss is told once."""
    bed = Bed(2)
    before = bed.groups[0].ranks
    bed.learner.on_lost = lambda: (bed.story.append("lost"), setattr(bed.learner, "restore_from", SAVED))  # type: ignore[func-returns-value,assignment,return-value]
    getattr(bed.rank(number), fault)()
    bed.pass_time(15.0)
    assert bed.story == ["ready", "lost", "ready"]
    assert [fields["number"] for fields in bed.lost] == [number]
    assert not any(rank.is_alive for rank in before)
    assert [rank.trained for rank in bed.groups[1].ranks] == [["saved"], ["saved"]]


def test_there_is_no_learner_while_the_group_comes_back() -> None:
    """So that nobody calls the dead."""
    bed = Bed(2)
    bed.rank(1).die()
    while bed.story == ["ready"]:
        bed.pass_time(0.25)
    assert bed.learner.learner is None


def test_a_call_of_all_ranks_gives_their_values_in_rank_order() -> None:
    """Once the last has answered."""
    bed = Bed(2)
    answers: list[Any] = []
    calls = [bed.cluster.ended(2.0, value="first"), bed.cluster.ended(1.0, value="second")]
    bed.learner.call_all(calls, seconds=9.0, done=answers.append, work="asking")
    bed.pass_time(1.5)
    assert answers == []
    bed.pass_time(1.5)
    assert answers == [["first", "second"]]


def test_an_answer_of_a_group_that_fell_is_not_heard() -> None:
    """The other rank's answer is not there, and never comes."""
    bed = Bed(2)
    answers: list[Any] = []
    calls = [bed.cluster.ended(1.0, value=1), bed.cluster.ended(2.0, error=ValueError("no"))]
    bed.learner.call_all(calls, seconds=9.0, done=answers.append, work="a step")
    bed.pass_time(15.0)
    assert answers == []
    assert [fields["reason"] for fields in bed.lost] == ["a step: ValueError: no"]
    assert bed.story == ["ready", "lost", "ready"]


@pytest.mark.parametrize("moment", [0.5, 1.105, 1.15, 1.25])
def test_a_rank_that_dies_while_the_group_meets_starts_it_again(moment: float) -> None:
    """While it starts, or the address is chosen, or the ranks join, or load."""
    bed = Bed(2, restore_from=SAVED)
    bed.learner.restart("once more")
    bed.cluster.after(moment, lambda: bed.rank(1).die())
    bed.pass_time(20.0)
    assert len(bed.lost) == 2
    assert bed.learner.learner is bed.groups[-1]
    assert all(rank.is_alive and rank.trained == ["saved"] for rank in bed.groups[-1].ranks)


def test_a_group_can_be_made_to_start_again() -> None:
    """Where the state of the ranks is no good, though they live."""
    bed = Bed(2)
    bed.learner.restart("responses went with a node")
    bed.pass_time(5.0)
    assert bed.story == ["ready", "lost", "ready"]
    assert bed.lost == [{"number": 0, "reason": "responses went with a node"}]
