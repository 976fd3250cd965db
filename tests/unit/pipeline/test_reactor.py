"""Waiting for many calls: each has one of two handlers run, once, or none when it is forgotten."""

from typing import Any

import pytest
from scripted.virtual import Call, VirtualCluster

from minillm_ray.pipeline.reactor import MissedDeadline, Reactor


class Bed:
    """A reactor on a virtual cluster; outcomes: what handlers heard, by the name of the call."""

    def __init__(self) -> None:
        self.cluster = VirtualCluster()
        self.reactor = Reactor(self.cluster.clock, ready_among=self.cluster.ready_among, value_of=self.cluster.value_of)
        self.outcomes: list[tuple[str, Any]] = []

    def expect(self, name: str, call: Call, *, seconds: float = 10.0) -> None:
        self.reactor.expect(
            call,
            seconds=seconds,
            done=lambda value: self.outcomes.append((name, value)),
            failed=lambda error: self.outcomes.append((name, type(error))),
            work=name,
        )

    def turn(self, times: int, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.reactor.turn(seconds)


@pytest.fixture
def bed() -> Bed:
    return Bed()


def test_each_call_is_handled_once_as_it_ends(bed: Bed) -> None:
    """Values and failures, in the order in which the calls end."""
    bed.expect("slow", bed.cluster.ended(2.0, value=2))
    bed.expect("fast", bed.cluster.ended(1.0, value=1))
    bed.expect("broken", bed.cluster.ended(1.5, error=ValueError("no")))
    bed.turn(6)
    assert bed.outcomes == [("fast", 1), ("broken", ValueError), ("slow", 2)]


def test_a_turn_takes_no_longer_than_it_may(bed: Bed) -> None:
    """So that supervision goes on while nothing ends."""
    bed.expect("slow", bed.cluster.ended(5.0))
    bed.turn(1, seconds=0.25)
    assert (bed.cluster.now, bed.outcomes) == (0.25, [])


def test_a_call_that_misses_its_deadline_fails_and_is_not_heard_of_again(bed: Bed) -> None:
    """Its value comes too late."""
    bed.expect("late", bed.cluster.ended(5.0, value=1), seconds=3.0)
    bed.turn(8)
    assert bed.outcomes == [("late", MissedDeadline)]


def test_an_answer_that_is_there_counts_though_the_driver_was_busy_past_the_deadline(bed: Bed) -> None:
    """What is over is handled before deadlines are looked at."""
    bed.expect("answered", bed.cluster.ended(1.0, value=1), seconds=3.0)
    bed.cluster.ready_among([], timeout_seconds=60.0)
    bed.turn(1)
    assert bed.outcomes == [("answered", 1)]


def test_no_handler_of_a_forgotten_call_runs(bed: Bed) -> None:
    """Neither for its value nor at its deadline."""
    calls = [bed.cluster.ended(1.0), Call()]
    for name, call in zip(("value", "deadline"), calls, strict=True):
        bed.expect(name, call, seconds=2.0)
    bed.reactor.forget(calls)
    bed.turn(5)
    assert bed.outcomes == []


@pytest.mark.parametrize("ends", [True, False])
def test_a_handler_may_forget_another_call_that_is_due_in_the_same_turn(bed: Bed, ends: bool) -> None:
    """Both are over, or both are past their deadline."""
    first, second = (bed.cluster.ended(1.0) if ends else Call() for _ in range(2))
    bed.expect("second", second, seconds=2.0)
    bed.reactor.forget([second])
    forget = lambda _: bed.reactor.forget([second])  # noqa: E731
    bed.reactor.expect(first, seconds=2.0, done=forget, failed=forget, work="first")
    bed.expect("second", second, seconds=2.0)
    bed.turn(5)
    assert bed.outcomes == []


def test_a_handler_may_make_new_calls(bed: Bed) -> None:
    """They are waited for from the next turn on."""
    bed.reactor.expect(
        bed.cluster.ended(1.0),
        seconds=9.0,
        done=lambda _: bed.expect("next", bed.cluster.ended(1.0, value=2)),
        failed=lambda error: None,
        work="first",
    )
    bed.turn(3)
    assert bed.outcomes == [("next", 2)]


def test_what_a_handler_raises_ends_the_turn(bed: Bed) -> None:
    """A run that must end, ends."""

    def refuse(_: object) -> None:
        raise RuntimeError("the run must end")

    bed.reactor.expect(bed.cluster.ended(0.5), seconds=9.0, done=refuse, failed=lambda error: None, work="x")
    with pytest.raises(RuntimeError, match="the run must end"):
        bed.turn(1)
