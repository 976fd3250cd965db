"""Waiting for many remote calls at once: each has a deadline, and a handler for its value and one for its failure.

The pipeline never blocks on one call: it makes calls, says what is to happen then, and turns the reactor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minillm_ray.pipeline.protocols import Reference
from minillm_ray.remote import ready_among, value_of


class MissedDeadline(Exception):
    """A call did not answer in time. Whoever made it decides what that means."""


class ReadyAmong(Protocol):
    """Those of the references that are over, once one is or the time is: minillm_ray.remote.ready_among."""

    def __call__(self, references: Sequence[Reference], *, timeout_seconds: float) -> list[Reference]: ...


Done = Callable[[Any], None]
Failed = Callable[[Exception], None]


@dataclass(frozen=True)
class _Call:
    expires: float
    done: Done
    failed: Failed
    work: str


class Reactor:
    """One thread, no locks. Handlers may make new calls, and forget others.

    ready_among waits for a call to end, value_of tells how it ended: those of the cluster.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        ready_among: ReadyAmong = ready_among,
        value_of: Callable[[Reference], Any] = value_of,
    ) -> None:
        self._clock, self._ready_among, self._value_of = clock, ready_among, value_of
        self._calls: dict[Reference, _Call] = {}

    def expect(self, reference: Reference, *, seconds: float, done: Done, failed: Failed, work: str) -> None:
        """`done` with the value, or `failed` with what the call raised or MissedDeadline."""
        self._calls[reference] = _Call(self._clock() + seconds, done, failed, work)

    def now(self) -> float:
        """Seconds of the clock that deadlines are counted by."""
        return self._clock()

    def forget(self, references: Sequence[Reference]) -> None:
        """Neither handler of these calls will run."""
        for reference in references:
            self._calls.pop(reference, None)

    def turn(self, seconds: float) -> None:
        """Run the handlers of all calls that are over, once one is or `seconds` have passed."""
        for reference in self._ready_among(list(self._calls), timeout_seconds=seconds):
            call = self._calls.pop(reference, None)
            if call is None:  # forgotten by a handler of this very turn
                continue
            try:
                value = self._value_of(reference)
            except Exception as error:
                call.failed(error)
            else:
                call.done(value)
        now = self._clock()
        for reference in [reference for reference, call in self._calls.items() if call.expires <= now]:
            if call := self._calls.pop(reference, None):
                call.failed(MissedDeadline(f"{call.work} did not finish in time"))
