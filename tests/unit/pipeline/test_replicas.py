"""Replicas of one role: what their deaths and hangs look like, and what follows."""

from typing import Any

import pytest
from scripted.virtual import VirtualActor, VirtualCluster, VirtualLauncher

from minillm_ray.config.errors import InputError, RunError
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Member, ReplicaSet, State, Supervision


class Bed:
    """Replicas that do nothing but live. ready, lost: the members that it was told of."""

    def __init__(self, *, max_restarts_per_hour: int = 3) -> None:
        self.cluster = VirtualCluster()
        reactor = Reactor(self.cluster.clock, ready_among=self.cluster.ready_among, value_of=self.cluster.value_of)
        self.launcher = VirtualLauncher(self.cluster, lambda number: VirtualActor(self.cluster))
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.messages: list[str] = []
        self.ready: list[Member] = []
        self.lost: list[Member] = []
        self.replicas = ReplicaSet(
            "rollout",
            self.launcher,
            reactor,
            Supervision(
                startup_seconds=30.0,
                heartbeat_seconds=6.0,
                progress_seconds=100.0,
                max_restarts_per_hour=max_restarts_per_hour,
            ),
            write_event=lambda kind, fields: self.events.append((kind, dict(fields))),
            message=self.messages.append,
            clock=self.cluster.clock,
        )
        self.replicas.on_ready = self.ready.append
        self.replicas.on_lost = self.lost.append
        self._reactor = reactor

    def pass_time(self, seconds: float) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.replicas.turn()
            self._reactor.turn(0.25)

    def start(self, count: int) -> "Bed":
        self.replicas.scale(count)
        self.pass_time(3.0)
        return self

    def actor(self, number: int) -> Any:
        return self.replicas.members[number].client

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    @property
    def reasons(self) -> list[str]:
        return [fields["reason"] for kind, fields in self.events if kind == "rollout_lost"]


def test_a_replica_gets_its_resources_then_starts_then_serves() -> None:
    """And whoever waits for it is told."""
    bed = Bed()
    bed.replicas.scale(1)
    states = [bed.replicas.members[0].state]
    bed.pass_time(0.5)
    states.append(bed.replicas.members[0].state)
    bed.pass_time(1.0)
    assert states == [State.RESERVED, State.STARTING]
    assert bed.replicas.serving == bed.ready == bed.replicas.members
    assert bed.events == [("rollout_ready", {"number": 0})]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda actor: actor.die(), "heartbeat: ActorDiedError"),
        (lambda actor: actor.hang(), "hung: rollout 0: heartbeat did not finish in time"),
        (lambda actor: setattr(actor, "beat_age", 101.0), "hung: no progress for 101 s"),
    ],
)
def test_a_replica_that_dies_hangs_or_stands_still_is_ended_and_replaced(fault: Any, reason: str) -> None:
    """By a new one of the same number; the others stay as they are."""
    bed = Bed().start(2)
    broken, other = bed.replicas.members
    fault(broken.client)
    bed.pass_time(12.0)
    assert [text[: len(reason)] for text in bed.reasons] == [reason]
    assert bed.lost == [broken]
    assert not broken.client.is_alive
    assert [member.number for member in bed.replicas.serving] == [0, 1]
    assert bed.replicas.members[0] is not broken
    assert bed.replicas.members[1] is other
    assert bed.kinds() == ["rollout_ready", "rollout_ready", "rollout_lost", "rollout_ready"]


def test_a_replica_that_answers_slowly_but_in_time_stays() -> None:
    """Whatever its work does, as long as it moves on."""
    bed = Bed().start(1)
    bed.actor(0).beat_age = 99.0
    bed.pass_time(60.0)
    assert bed.reasons == []


def test_a_replica_that_does_not_load_in_time_is_replaced() -> None:
    """The startup deadline."""
    bed = Bed()
    bed.launcher.create = lambda number: VirtualActor(bed.cluster, ready_seconds=31.0 if not bed.lost else 1.0)
    bed.start(1)
    bed.pass_time(35.0)
    assert bed.reasons == ["hung: rollout 0: loading did not finish in time"]
    assert len(bed.replicas.serving) == 1


def test_a_call_that_fails_is_the_end_of_the_replica() -> None:
    """Once, though another of its calls fails as well."""
    bed = Bed().start(1)
    member = bed.replicas.members[0]
    for _ in range(2):
        call = bed.cluster.ended(0.1, error=ValueError("bad luck"))
        bed.replicas.call(member, call, seconds=9.0, done=lambda value: None, work="working")
    bed.pass_time(2.0)
    assert bed.reasons == ["working: ValueError: bad luck"]


@pytest.mark.parametrize("error", [InputError("the model is no model"), RunError("weights differ")])
def test_bad_input_and_failed_checks_end_the_run_and_not_the_replica(error: Exception) -> None:
    """Another replica would say the same."""
    bed = Bed().start(1)
    call = bed.cluster.ended(0.1, error=error)
    bed.replicas.call(bed.replicas.members[0], call, seconds=9.0, done=lambda value: None, work="working")
    with pytest.raises(type(error), match=str(error)):
        bed.pass_time(2.0)


def test_a_replica_that_is_lost_too_often_within_an_hour_ends_the_run() -> None:
    """The message says who, how often, why and which setting bounds it."""
    bed = Bed(max_restarts_per_hour=2).start(1)
    with pytest.raises(RunError, match=r"rollout 0 was lost 3 times within an hour.*max_restarts_per_hour is 2"):
        for _ in range(3):
            bed.actor(0).die()
            bed.pass_time(10.0)
    assert len(bed.reasons) == 3


def test_losses_an_hour_apart_and_of_other_replicas_do_not_add_up() -> None:
    """The budget is each replica's own, and it comes back."""
    bed = Bed(max_restarts_per_hour=1).start(2)
    for number in (0, 1):
        bed.actor(number).die()
        bed.pass_time(10.0)
    bed.pass_time(3600.0)
    bed.actor(0).die()
    bed.pass_time(10.0)
    assert len(bed.reasons) == 3
    assert len(bed.replicas.serving) == 2


def test_who_waits_for_resources_says_so_every_half_minute() -> None:
    """And names what is missing."""
    bed = Bed()
    bed.launcher.place_seconds = float("inf")
    bed.replicas.scale(1)
    bed.pass_time(95.0)
    assert bed.messages == ["rollout 0 is waiting for resources: 1 GPU is wanted, 0 are free"] * 3
    assert bed.replicas.members[0].state is State.RESERVED


def test_resources_that_come_late_are_used() -> None:
    """However long it took."""
    bed = Bed()
    bed.launcher.place_seconds = 7200.0
    bed.replicas.scale(1)
    bed.pass_time(7210.0)
    assert len(bed.replicas.serving) == 1


def test_growing_starts_the_lowest_numbers_that_are_free() -> None:
    """While the others serve."""
    bed = Bed().start(1)
    bed.replicas.scale(3)
    assert [member.state for member in bed.replicas.members] == [State.SERVING, State.RESERVED, State.RESERVED]
    bed.pass_time(3.0)
    assert [member.number for member in bed.replicas.serving] == [0, 1, 2]


def test_a_drained_replica_ends_once_it_has_nothing_in_hand() -> None:
    """It gets nothing new, the highest number first; its resources are given back."""
    bed = Bed().start(3)
    last = bed.replicas.members[2]
    last.load = 1
    bed.replicas.scale(2)
    bed.pass_time(20.0)
    assert (last.state, last.client.is_alive, len(bed.replicas.serving)) == (State.DRAINING, True, 2)
    last.load = 0
    bed.pass_time(1.0)
    assert not last.client.is_alive
    assert bed.kinds()[-2:] == ["rollout_draining", "rollout_drained"]
    assert bed.launcher.num_released == 1


def test_a_draining_replica_that_dies_is_lost_but_not_replaced() -> None:
    """What it had in hand is told of as of any other."""
    bed = Bed().start(2)
    last = bed.replicas.members[1]
    last.load = 1
    bed.replicas.scale(1)
    last.client.die()
    bed.pass_time(10.0)
    assert bed.lost == [last]
    assert len(bed.replicas.members) == 1
    assert not any("is replaced" in message for message in bed.messages)


@pytest.mark.parametrize("place_seconds", [float("inf"), 0.1])
def test_a_replica_that_does_not_serve_yet_is_drained_at_once(place_seconds: float) -> None:
    """Whether it waits for resources or loads."""
    bed = Bed().start(1)
    bed.launcher.place_seconds = place_seconds
    bed.replicas.scale(2)
    bed.pass_time(0.5)
    bed.replicas.scale(1)
    bed.pass_time(5.0)
    assert [member.number for member in bed.replicas.members] == [0]
    assert bed.launcher.num_released == 1
    assert bed.kinds() == ["rollout_ready", "rollout_draining", "rollout_drained"]


def test_draining_and_growing_again_takes_a_number_that_is_free() -> None:
    """A draining replica keeps its own until it is gone."""
    bed = Bed().start(2)
    bed.replicas.members[1].load = 1
    bed.replicas.scale(1)
    bed.replicas.scale(2)
    assert [(member.number, member.state) for member in bed.replicas.members] == [
        (0, State.SERVING),
        (1, State.DRAINING),
        (2, State.RESERVED),
    ]


def test_the_end_stops_everyone_and_gives_everything_back() -> None:
    """Whatever state it is in."""
    bed = Bed().start(2)
    bed.replicas.scale(3)
    bed.replicas.stop()
    assert not any(actor.is_alive for actor in bed.launcher.started)
    assert bed.launcher.num_released == bed.launcher.num_reserved == 3
    assert bed.replicas.members == []
