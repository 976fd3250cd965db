"""Where the time of every replica goes: busy, waiting for input, waiting for weights. The clock is given, Ray unknown.

An engine says with each beat how long it has been busy in all, not when. Between two beats the pipeline sees whether
the replica had work in hand; the busy time is laid there first:

    beat | in hand 1.5 s | nothing in hand until newer weights come 0.5 s | beat: 1.2 s busy since the last
      =>   busy 1.2, waiting for input 0.3, waiting for weights 0.5

Invariant: busy time is the replica's own count, and the three kinds add up to the time that it was there. Where a slice
of it lies is known to one beat only. The learner has no count of its own: it is busy while a call to it is under way.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

Kind = Literal["busy", "waiting_input", "waiting_weights"]
_KINDS: tuple[Kind, ...] = ("busy", "waiting_input", "waiting_weights")
_MEASURED: dict[str, tuple[Kind, ...]] = {"rollout": _KINDS, "teacher": _KINDS[:2], "learner": _KINDS[:2]}
"""Nobody but a rollout replica waits for weights."""


class Posture(Enum):
    """What the pipeline sees of a replica from outside."""

    IN_HAND = "busy"
    AWAITS_WEIGHTS = "waiting for weights"
    AWAITS_INPUT = "waiting for input"


@dataclass(frozen=True)
class Observation:
    """One replica at one moment. work: what it is at, where that is known.

    busy_seconds  Its own count at its last beat, None for one that does not count.
    beat_at       When that beat came, 0 before the first; any number that another beat changes.
    """

    role: str
    number: int
    posture: Posture
    work: str = ""
    busy_seconds: float | None = None
    beat_at: float = 0.0


@dataclass(frozen=True)
class Slice:
    """A stretch of a replica's time, in seconds of the clock. name: for people."""

    role: str
    number: int
    kind: Kind
    name: str
    begin: float
    end: float


class Activity:
    """note: what is seen, as often as it may have changed. take: what became of the time since the last take."""

    def __init__(self, clock: Callable[[], float], on_slice: Callable[[Slice], None] = lambda found: None) -> None:
        self._clock = clock
        self._on_slice = on_slice
        self._replicas: dict[Hashable, _Replica] = {}
        self._gone: list[_Replica] = []

    def note(self, seen: Mapping[Hashable, Observation]) -> None:
        """Every replica that is there now. A key is one life of a replica: one that replaces another has its own."""
        now = self._clock()
        for key in self._replicas.keys() - seen.keys():
            replica = self._replicas.pop(key)
            self._emit(replica.leave(now))
            self._gone.append(replica)
        for key, observation in seen.items():
            if key in self._replicas:
                self._emit(self._replicas[key].see(observation, now))
            else:
                self._replicas[key] = _Replica(observation, now)

    def take(self) -> dict[str, float]:
        """By declared name: seconds of each kind since the last take, mean over a role's replicas.

        A replica and those that replaced it meanwhile count as one. What no beat has told yet is estimated from the
        last beat, and made good in the next take.
        """
        now = self._clock()
        seconds: dict[tuple[str, int], dict[Kind, float]] = defaultdict(lambda: dict.fromkeys(_KINDS, 0.0))
        for replica in [*self._gone, *self._replicas.values()]:
            of_number = seconds[replica.role, replica.number]
            for kind, taken in replica.take(now).items():
                of_number[kind] += taken
        self._gone.clear()
        means: dict[str, float] = {}
        for role, kinds in _MEASURED.items():
            parts = [part for (of_role, _), part in seconds.items() if of_role == role]
            if parts:
                means |= {f"pipeline/{kind}_seconds/{role}": sum(p[kind] for p in parts) / len(parts) for kind in kinds}
        return means

    def _emit(self, slices: list[Slice]) -> None:
        for found in slices:
            self._on_slice(found)


@dataclass(frozen=True)
class _Stretch:
    """Time in one posture."""

    posture: Posture
    work: str
    begin: float
    end: float


class _Replica:
    """One life of a replica. Its time is open from the last beat on, settled before."""

    def __init__(self, first: Observation, now: float) -> None:
        self.role, self.number = first.role, first.number
        self._seen = first
        self._at = now
        self._busy_before = first.busy_seconds if first.beat_at else None
        self._busy_share = 1.0
        """Of the time with work in hand, at the last beat."""
        self._open: list[_Stretch] = []
        self._settled = dict.fromkeys(_KINDS, 0.0)
        self._taken = dict.fromkeys(_KINDS, 0.0)

    def see(self, seen: Observation, now: float) -> list[Slice]:
        """What was seen last held until now. Returns what is settled by this."""
        self._pass_time(now)
        had_beat = seen.beat_at != self._seen.beat_at
        self._seen = seen
        if seen.busy_seconds is None:
            return self._settle(self._estimate())
        if not had_beat:
            return []
        if self._busy_before is None:  # what it did before it was seen is not of interest
            self._busy_before = seen.busy_seconds
            return self._settle(self._estimate())
        # What does not fit between two beats, since they travel, belongs to the next stretch.
        busy = min(seen.busy_seconds - self._busy_before, sum(stretch.end - stretch.begin for stretch in self._open))
        self._busy_before += busy
        return self._settle(busy)

    def leave(self, now: float) -> list[Slice]:
        """It is gone, without a last word."""
        self._pass_time(now)
        self._at = float("inf")  # no more time passes
        return self._settle(self._estimate())

    def take(self, now: float) -> dict[Kind, float]:
        """Seconds since the last take."""
        self._pass_time(now)
        told = dict(self._settled)
        for found in self._laid(self._estimate()):
            told[found.kind] += found.end - found.begin
        taken = {kind: max(0.0, told[kind] - self._taken[kind]) for kind in _KINDS}
        for kind in _KINDS:
            self._taken[kind] += taken[kind]
        return taken

    def _pass_time(self, now: float) -> None:
        posture, work = self._seen.posture, self._seen.work
        if now <= self._at:
            return
        last = self._open[-1] if self._open else None
        if last is not None and (last.posture, last.work) == (posture, work):
            self._open[-1] = replace(last, end=now)
        else:
            self._open.append(_Stretch(posture, work, self._at, now))
        self._at = now

    def _estimate(self) -> float:
        """Busy seconds of the open time, if it is like the time before."""
        return self._busy_share * self._open_seconds(Posture.IN_HAND)

    def _settle(self, busy: float) -> list[Slice]:
        slices = self._laid(busy)
        for found in slices:
            self._settled[found.kind] += found.end - found.begin
        if in_hand := self._open_seconds(Posture.IN_HAND):
            self._busy_share = min(1.0, busy / in_hand)
        self._open.clear()
        return slices

    def _laid(self, busy: float) -> list[Slice]:
        """The open time cut into slices; `busy` seconds of it where work was in hand, then where weights came."""
        shares: dict[Posture, float] = {}
        for posture in Posture:
            there = self._open_seconds(posture)
            laid = min(busy, there)
            busy -= laid
            shares[posture] = laid / there if there else 0.0
        slices = []
        for stretch in self._open:
            until = stretch.begin + shares[stretch.posture] * (stretch.end - stretch.begin)
            if until > stretch.begin:
                name = stretch.work or Posture.IN_HAND.value
                slices.append(Slice(self.role, self.number, "busy", name, stretch.begin, until))
            if stretch.end > until:
                slices.append(self._wait(stretch, until))
        return slices

    def _wait(self, stretch: _Stretch, begin: float) -> Slice:
        if stretch.posture is Posture.AWAITS_WEIGHTS:
            name = stretch.work or stretch.posture.value
            return Slice(self.role, self.number, "waiting_weights", name, begin, stretch.end)
        return Slice(self.role, self.number, "waiting_input", Posture.AWAITS_INPUT.value, begin, stretch.end)

    def _open_seconds(self, posture: Posture) -> float:
        return sum(stretch.end - stretch.begin for stretch in self._open if stretch.posture is posture)
