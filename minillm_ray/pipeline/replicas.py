"""The replicas of one role: started, watched, replaced when they die or hang, added and drained.

    RESERVED --resources--> STARTING --ready--> SERVING --drain, idle--> gone
        ^                       |                  |
        +------- replaced ------+---- died, hung --+

A replica is found dead when a call to it fails for that reason; hung when it does not answer a ping within the
heartbeat deadline, or its own work has not moved on for the progress deadline (Ray reports a death, never a hang).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from minillm_ray.config.errors import InputError, RunError
from minillm_ray.pipeline.protocols import Reference
from minillm_ray.pipeline.reactor import MissedDeadline, Reactor
from minillm_ray.remote import Beat, describe

_HOUR_SECONDS = 3600.0
_BEATS_A_DEADLINE = 3
_BEAT_SECONDS = 2.0
"""At least as often, so that idle times are known while a step is made."""
REMINDER_SECONDS = 30.0
"""How often it is said what a replica waits for."""


class State(Enum):
    """Of one replica."""

    RESERVED = "waiting for resources"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Launcher(Protocol):
    """How replicas of a role come into being: first their resources, then their actor."""

    def reserve(self, number: int) -> tuple[Any, Reference]: ...
    def missing(self) -> str: ...
    def start(self, number: int, reservation: Any) -> Any: ...
    def release(self, reservation: Any) -> None: ...


@dataclass(frozen=True)
class Supervision:
    """Deadlines in seconds, and how often one replica may be replaced within an hour."""

    startup_seconds: float
    heartbeat_seconds: float
    progress_seconds: float
    max_restarts_per_hour: int


@dataclass(eq=False)
class Member:
    """One replica. client: what calls go through, from STARTING on; load: responses that it has in hand;
    version: of its weights, 0 before the first pull; busy_seconds: its own count, as of the beat at beat_at."""

    role: str
    number: int
    state: State = State.RESERVED
    client: Any = None
    reservation: Any = None
    version: int = 0
    load: int = 0
    pulling: bool = False
    asked_at: float = 0.0
    busy_seconds: float = 0.0
    beat_at: float = 0.0
    calls: set[Reference] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.role} {self.number}"


class ReplicaSet:
    """on_ready: a replica answers. on_lost: it is gone and a new one is on its way; why is in the events."""

    def __init__(
        self,
        role: str,
        launcher: Launcher,
        reactor: Reactor,
        supervision: Supervision,
        *,
        write_event: Callable[[str, Mapping[str, Any]], None],
        message: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role = role
        self._launcher, self._reactor, self._supervision = launcher, reactor, supervision
        self._beat_seconds = min(_BEAT_SECONDS, supervision.heartbeat_seconds / _BEATS_A_DEADLINE)
        self._write_event, self._message, self._clock = write_event, message, clock
        self._members: dict[int, Member] = {}
        self._restarts: dict[int, list[float]] = defaultdict(list)
        self.on_ready: Callable[[Member], None] = lambda member: None
        self.on_lost: Callable[[Member], None] = lambda member: None

    @property
    def members(self) -> list[Member]:
        """All, by number, draining ones among them."""
        return [self._members[number] for number in sorted(self._members)]

    @property
    def serving(self) -> list[Member]:
        return [member for member in self.members if member.state is State.SERVING]

    def scale(self, count: int) -> None:
        """Have `count` replicas: the lowest free numbers are started, the highest are drained."""
        active = [member for member in self.members if member.state is not State.DRAINING]
        for member in active[count:]:
            self._drain(member)
        missing = count - len(active)
        free = (number for number in range(count + len(self._members)) if number not in self._members)
        for _ in range(missing):
            self._reserve(next(free))

    def turn(self) -> None:
        """Supervision that needs no call's end: reminders, beats that are due, drained replicas."""
        now = self._clock()
        for member in self.members:
            if member.state is State.RESERVED and now - member.asked_at >= REMINDER_SECONDS:
                member.asked_at = now
                missing = self._launcher.missing()
                self._write_event(f"{self.role}_waiting", {"number": member.number, "missing": missing})
                self._message(f"{member.name} is waiting for resources: {missing}")
            elif member.state is State.DRAINING and not member.load:
                self._remove_drained(member)
            elif member.state in (State.SERVING, State.DRAINING) and now - member.asked_at >= self._beat_seconds:
                self._beat(member)

    def lose(self, member: Member, reason: str) -> None:
        """It died or hangs: end it for good, start another in its place. RunError once that happened too often."""
        self._write_event(f"{self.role}_lost", {"number": member.number, "reason": reason})
        is_draining = member.state is State.DRAINING
        self._message(f"{member.name} is lost ({reason})" + ("" if is_draining else " and is replaced"))
        self._remove(member)
        self.on_lost(member)
        if is_draining:
            return
        now = self._clock()
        recent = [*(at for at in self._restarts[member.number] if now - at < _HOUR_SECONDS), now]
        self._restarts[member.number] = recent
        if len(recent) > self._supervision.max_restarts_per_hour:
            raise RunError(
                f"{member.name} was lost {len(recent)} times within an hour, the last time because: {reason}. See the "
                f"files in RUN/logs; pipeline.max_restarts_per_hour is {self._supervision.max_restarts_per_hour}"
            )
        self._reserve(member.number)

    def restart(self, member: Member) -> None:
        """Start another in its place though nothing is wrong with it."""
        self._remove(member)
        self._reserve(member.number)

    def failed(self, member: Member, error: Exception, work: str) -> None:
        """A call to it failed. Bad input ends the run; anything else is the end of the replica."""
        if isinstance(error, InputError | RunError):
            raise error
        hung = isinstance(error, MissedDeadline)
        self.lose(member, f"hung: {error}" if hung else f"{work}: {describe(error)}")

    def stop(self) -> None:
        """End every replica."""
        for member in self.members:
            self._remove(member)

    def call(
        self, member: Member, reference: Reference, *, seconds: float, done: Callable[[Any], None], work: str
    ) -> None:
        """Expect a call to `member`: its failure is the end of the replica."""
        member.calls.add(reference)

        def finish(value: Any) -> None:
            member.calls.discard(reference)
            done(value)

        self._reactor.expect(
            reference,
            seconds=seconds,
            done=finish,
            failed=lambda error: self.failed(member, error, work),
            work=f"{member.name}: {work}",
        )

    def _reserve(self, number: int) -> None:
        member = Member(self.role, number, asked_at=self._clock())
        self._members[number] = member
        member.reservation, there = self._launcher.reserve(number)
        self.call(member, there, seconds=float("inf"), done=lambda _: self._start(member), work="waiting for resources")

    def _start(self, member: Member) -> None:
        member.state = State.STARTING
        member.client = self._launcher.start(member.number, member.reservation)
        self.call(
            member,
            member.client.ready(),
            seconds=self._supervision.startup_seconds,
            done=lambda _: self._serve(member),
            work="loading",
        )

    def _serve(self, member: Member) -> None:
        member.state = State.SERVING
        self._write_event(f"{self.role}_ready", {"number": member.number})
        self.on_ready(member)

    def _beat(self, member: Member) -> None:
        member.asked_at = float("inf")  # until this one is answered

        def answered(beat: Beat) -> None:
            member.asked_at = member.beat_at = self._clock()
            member.busy_seconds = beat.busy_seconds
            if beat.seconds_since_progress > self._supervision.progress_seconds:
                self.lose(member, f"hung: no progress for {beat.seconds_since_progress:.0f} s")

        seconds = self._supervision.heartbeat_seconds
        self.call(member, member.client.ping(), seconds=seconds, done=answered, work="heartbeat")

    def _drain(self, member: Member) -> None:
        self._write_event(f"{self.role}_draining", {"number": member.number})
        if member.state is State.SERVING:
            member.state = State.DRAINING
        else:
            self._remove_drained(member)

    def _remove_drained(self, member: Member) -> None:
        self._write_event(f"{self.role}_drained", {"number": member.number})
        self._remove(member)

    def _remove(self, member: Member) -> None:
        del self._members[member.number]
        self._reactor.forget(list(member.calls))
        if member.client is not None:
            member.client.stop()
        self._launcher.release(member.reservation)
