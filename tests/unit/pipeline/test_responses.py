"""The life of a response, and what becomes of it when somebody dies who has it in hand."""

from collections.abc import Callable
from typing import Any

import pytest
from scripted.virtual import Call, Drawn, VirtualCluster, VirtualLauncher, VirtualRollout, VirtualTeacher

from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Member, ReplicaSet, Supervision
from minillm_ray.pipeline.responses import Response, Responses, least_loaded
from minillm_ray.remote import PeerFailed

ALONE, MIXED = Task("train", 7, 0, mixed=False), Task("train", 7, 0, mixed=True)


class Bed:
    """Replicas that serve, at weights of version 1; a response takes 4 s to draw and 2 s to score."""

    def __init__(self, *, rollouts: int = 2, teachers: int = 2) -> None:
        self.cluster = cluster = VirtualCluster()
        self._reactor = Reactor(cluster.clock, ready_among=cluster.ready_among, value_of=cluster.value_of)
        self.rollout = self._replicas("rollout", lambda number: VirtualRollout(cluster, lambda task: 4.0))
        self.teacher = self._replicas("teacher", lambda number: VirtualTeacher(cluster, 2.0))
        self.responses = Responses(self._reactor, self.rollout, self.teacher, call_seconds=30.0)
        self.scored: list[Response] = []
        self.lost: list[Response] = []
        self.responses.on_scored, self.responses.on_lost = self.scored.append, self.lost.append
        self.rollout.on_lost, self.teacher.on_lost = self.responses.rollout_lost, self.responses.teacher_lost
        self.rollout.scale(rollouts)
        self.teacher.scale(teachers)
        self.pass_time(3.0)
        for member in self.rollout.members:
            member.client.version = 1

    def _replicas(self, role: str, create: Callable[[int], Any]) -> ReplicaSet:
        return ReplicaSet(
            role,
            VirtualLauncher(self.cluster, create),
            self._reactor,
            Supervision(30.0, 6.0, 100.0, 10),
            write_event=lambda kind, fields: None,
            message=lambda text: None,
            clock=self.cluster.clock,
        )

    def start(self, task: Task = ALONE, number: int = 0) -> None:
        self.responses.start("key", task, self.rollout.members[number])

    def pass_time(self, seconds: float) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.rollout.turn()
            self.teacher.turn()
            if hasattr(self, "responses"):
                self.responses.turn()
            self._reactor.turn(0.25)

    @property
    def loads(self) -> list[int]:
        return [member.load for member in [*self.rollout.members, *self.teacher.members]]


def test_a_response_is_drawn_and_scored_without_waiting_for_others() -> None:
    """It has what both calls said, and when; nobody has it in hand any more."""
    bed = Bed()
    bed.start()
    bed.pass_time(3.0)
    bed.start(number=1)
    bed.pass_time(3.5)
    [response] = bed.scored
    assert (response.key, response.drawn, response.scored) == ("key", "report", "report")
    assert response.payload.get() == response.trajectory.get() == Drawn(ALONE, (1, 1))
    times = response.drawn_at - response.began_at, response.scored_at - response.drawn_at
    assert times == pytest.approx((4.0, 2.0))
    assert bed.loads == [0, 1, 0, 0]


def test_responses_go_to_the_teacher_with_the_shortest_queue() -> None:
    """Among equals to the first."""
    bed = Bed()
    for _ in range(4):
        bed.start()
    bed.pass_time(4.25)
    assert bed.loads[2:] == [2, 2]
    assert least_loaded([Member("a", 0, load=2), Member("a", 1, load=1), Member("a", 2, load=1)]).number == 1


def test_a_mixed_response_is_scored_by_the_teacher_that_knows_its_session() -> None:
    """And the session is closed by that."""
    bed = Bed()
    bed.start(MIXED)
    bed.pass_time(12.0)
    [response] = bed.scored
    teacher = response.teacher.client  # type: ignore[union-attr]
    assert teacher.scored == [(response.trajectory.get(), response.session)]
    assert teacher.sessions == set()


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_what_a_lost_rollout_replica_was_drawing_is_lost(fault: str) -> None:
    """Once each; and the teachers forget the sessions of what was mixed."""
    bed = Bed()
    bed.start(MIXED)
    bed.start(MIXED, number=1)
    bed.pass_time(2.5)
    getattr(bed.rollout.members[0].client, fault)()
    bed.pass_time(20.0)
    assert [len(bed.lost), len(bed.scored)] == [1, 1]
    assert bed.loads == [0, 0, 0, 0]
    assert all(not member.client.sessions for member in bed.teacher.members)


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_what_a_lost_teacher_was_scoring_is_scored_by_another(fault: str) -> None:
    """Nothing is drawn again."""
    bed = Bed()
    bed.start()
    bed.pass_time(5.0)
    getattr(bed.teacher.members[0].client, fault)()
    bed.pass_time(20.0)
    assert (len(bed.scored), bed.lost) == (1, [])
    assert len(bed.rollout.members[0].client.asked) == 1


def test_a_teacher_that_answers_a_proposal_with_an_exception_is_replaced() -> None:
    """The next answer would be no better. The sampler, which only passed it on, stays; the prompt is drawn again."""
    bed = Bed(teachers=1)
    teacher, rollout = bed.teacher.members[0], bed.rollout.members[0]
    failing = Call()
    rollout.client.respond = lambda task, **details: (failing, Call())
    bed.start(MIXED)
    failing.end(error=PeerFailed("IndexError: 7"))
    bed.pass_time(5.0)
    assert len(bed.lost) == 1
    assert bed.teacher.members[0] is not teacher
    assert bed.rollout.members[0] is rollout


def test_what_is_drawn_while_no_teacher_serves_waits_for_one() -> None:
    """The only one dies; its successor scores everything."""
    bed = Bed(teachers=1)
    bed.start()
    bed.pass_time(3.9)
    bed.teacher.members[0].client.die()
    bed.pass_time(20.0)
    assert (len(bed.scored), bed.lost) == (1, [])


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_mixed_response_whose_teacher_is_lost_is_drawn_again(fault: str) -> None:
    """The rollout replica says so; it is not to blame and stays."""
    bed = Bed(rollouts=1)
    bed.start(MIXED)
    member = bed.rollout.members[0]
    bed.pass_time(1.0)
    getattr(bed.teacher.members[0].client, fault)()
    bed.pass_time(20.0)
    assert (len(bed.lost), bed.scored) == (1, [])
    assert bed.rollout.members == [member]
    assert member.load == 0


def test_a_drawn_response_that_was_mixed_with_a_lost_teacher_is_scored_by_another_without_its_session() -> None:
    """The whole response is scored anew."""
    bed = Bed()
    bed.start(MIXED)
    bed.pass_time(5.0)
    assert bed.loads == [0, 0, 1, 0]
    bed.teacher.members[0].client.die()
    bed.pass_time(20.0)
    [response] = bed.scored
    assert [session for member in bed.teacher.members for _, session in member.client.scored] == [None]
    assert bed.lost == []
    assert response.teacher is bed.teacher.members[1]


def test_a_mixed_response_needs_a_teacher_from_its_first_token_on() -> None:
    """One that is not mixed can be drawn before there is any."""
    bed = Bed(teachers=0)
    assert bed.responses.can_start(mixed=False)
    assert not bed.responses.can_start(mixed=True)


def test_a_trajectory_that_went_with_its_node_is_drawn_again() -> None:
    """The teacher that could not fetch it is not to blame and stays."""
    bed = Bed()
    bed.start()
    bed.pass_time(3.75)
    [response] = bed.responses._drawing
    response.trajectory.is_lost = True
    teachers = bed.teacher.members
    bed.pass_time(10.0)
    assert (bed.lost, bed.scored) == ([response], [])
    assert bed.teacher.members == teachers
    assert bed.loads == [0, 0, 0, 0]


def test_a_response_that_takes_too_long_is_the_end_of_who_draws_it() -> None:
    """The deadline of any one call."""
    bed = Bed()
    member = bed.rollout.members[0]
    member.client._seconds = lambda task: 100.0
    bed.start()
    bed.pass_time(31.0)
    assert len(bed.lost) == 1
    assert not member.client.is_alive


def test_a_trajectory_that_is_there_is_only_scored() -> None:
    """As a checkpoint's finished responses are."""
    bed = Bed()
    there = bed.cluster.ended(0.0, value="a trajectory")
    bed.responses.score("key", ALONE, there)
    bed.pass_time(3.0)
    [response] = bed.scored
    assert (response.payload.get(), response.drawn) == ("a trajectory", None)


def test_nothing_is_heard_of_what_was_abandoned() -> None:
    """Drawing stops, loads are back at zero, and new responses are drawn as ever, also one that is started at once."""
    bed = Bed()
    bed.start(MIXED)
    bed.start(number=1)
    bed.pass_time(4.5)
    bed.start(MIXED)
    bed.pass_time(1.0)
    bed.responses.abandon()
    bed.pass_time(0.5)
    assert all(not member.client.drawing for member in bed.rollout.members)
    bed.pass_time(10.0)
    assert (bed.scored, bed.lost) == ([], [])
    assert bed.loads == [0, 0, 0, 0]
    bed.start()
    bed.responses.abandon()
    bed.start(number=1)
    bed.start()
    bed.pass_time(10.0)
    assert len(bed.scored) == 2 and bed.lost == []
    assert all(member in bed.rollout.serving for member in bed.rollout.members)
