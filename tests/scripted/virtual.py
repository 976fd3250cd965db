"""A cluster in virtual time: calls end when a script says, actors die and hang on command, and nobody waits a second.

References are `Call`s. A Reactor is given `clock`, `ready_among` and `value_of` of a VirtualCluster instead of Ray's.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError, ObjectLostError

from minillm_ray.pipeline.protocols import Publication, Task
from minillm_ray.remote import Beat, PeerUnavailable

_NOTICE_SECONDS = 0.01
"""Until a death is known."""


class Call:
    """A reference: pending, then over with a value or an error. is_lost: its value went with a node."""

    def __init__(self) -> None:
        self.is_over = False
        self.is_lost = False
        self.value: Any = None
        self.error: Exception | None = None
        self._listeners: list[Callable[[], None]] = []

    def end(self, value: Any = None, error: Exception | None = None) -> None:
        if self.is_over:
            return
        self.is_over, self.value, self.error = True, value, error
        for listener in self._listeners:
            listener()

    def when_over(self, listener: Callable[[], None]) -> None:
        if self.is_over:
            listener()
        else:
            self._listeners.append(listener)

    def get(self) -> Any:
        if self.is_lost:
            raise ObjectLostError("0" * 56, None, "")
        if self.error is not None:
            raise self.error
        return self.value


class VirtualCluster:
    """now: seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def ended(self, seconds: float, value: Any = None, error: Exception | None = None) -> Call:
        """A call that ends so, `seconds` from now."""
        call = Call()
        self.after(seconds, lambda: call.end(value, error))
        return call

    def ready_among(self, references: Sequence[Call], *, timeout_seconds: float) -> list[Call]:
        until = self.now + timeout_seconds
        while not any(call.is_over for call in references) and self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
        over = [call for call in references if call.is_over]
        if not over:
            self.now = until
        return over

    def value_of(self, reference: Call) -> Any:
        assert reference.is_over
        return reference.get()


class VirtualActor:
    """is_alive, hangs: as a fault has left it. beat_age: what its next beats say."""

    def __init__(self, cluster: VirtualCluster, *, ready_seconds: float = 1.0) -> None:
        self.cluster = cluster
        self.is_alive, self.hangs = True, False
        self.beat_age = 0.0
        self.ready_seconds = ready_seconds
        self._pending: set[Call] = set()

    def call(self, seconds: float, work: Callable[[], Any] = lambda: None) -> Call:
        """Ends `seconds` from now with what `work` gives or raises then; never, where the actor hangs by then."""
        call = Call()
        self._begin(call)
        self.cluster.after(seconds, lambda: self.finish(call, work))
        return call

    def finish(self, call: Call, work: Callable[[], Any]) -> None:
        if self.hangs or not self.is_alive or call.is_over:
            return
        self._pending.discard(call)
        try:
            call.end(work())
        except Exception as error:
            call.end(error=error)

    def ready(self) -> Call:
        return self.call(self.ready_seconds)

    def ping(self) -> Call:
        return self.call(0.001, lambda: Beat(self.beat_age))

    def stop(self) -> None:
        self.die()

    def die(self) -> None:
        self.is_alive = False
        for call in self._pending:
            self._fail(call)
        self._pending.clear()

    def hang(self) -> None:
        self.hangs = True

    def _begin(self, call: Call) -> None:
        if self.is_alive:
            self._pending.add(call)
        else:
            self._fail(call)

    def _fail(self, call: Call) -> None:
        self.cluster.after(_NOTICE_SECONDS, lambda: call.end(error=ActorDiedError()))


@dataclass(frozen=True)
class Drawn:
    """A trajectory. versions: of the weights that drew its tokens."""

    task: Task
    versions: tuple[int, ...]


class VirtualTeacher(VirtualActor):
    """Scores a response by naming it. sessions: of mixed responses that it was not told to forget."""

    def __init__(self, cluster: VirtualCluster, seconds: float) -> None:
        super().__init__(cluster)
        self._seconds = seconds
        self.sessions: set[str] = set()
        self.scored: list[tuple[Any, str | None]] = []

    def extend(self, session: str) -> Call:
        self.sessions.add(session)
        return self.call(self._seconds / 10)

    def score(self, trajectory: Call, session: str | None, *, exact: bool) -> tuple[Call, Call]:
        def work() -> str:
            value = trajectory.get()
            self.scored.append((value, session))
            self.sessions.discard(session or "")
            payload.end(value)
            return "report"

        payload = Call()
        assert session is None or session in self.sessions
        return self.call(self._seconds, work), payload

    def forget(self, session: str) -> None:
        self.sessions.discard(session)


class VirtualRollout(VirtualActor):
    """Draws two tokens, each at the version that is loaded then; where a teacher is given it is asked in between."""

    def __init__(self, cluster: VirtualCluster, seconds: Callable[[Task], float], pull_seconds: float = 0.1) -> None:
        super().__init__(cluster)
        self._seconds, self._pull_seconds = seconds, pull_seconds
        self.version = 0
        self.asked: list[tuple[Task, tuple[str, int, int] | None]] = []
        self._drawing: dict[Call, Task] = {}
        self._sessions: dict[Call, str] = {}

    @property
    def drawing(self) -> list[Task]:
        return list(self._drawing.values())

    def respond(
        self, task: Task, *, teacher: VirtualTeacher | None, session: str, together: tuple[str, int, int] | None
    ) -> tuple[Call, Call]:
        assert self.version > 0 or not self.is_alive or self.hangs, "a stale replica was asked for a response"
        self.asked.append((task, together))
        report, trajectory = Call(), Call()
        self._begin(report)
        self._drawing[report] = task
        self._sessions[report] = session
        half = self._seconds(task) / 2
        versions: list[int] = []

        def first_token() -> None:
            versions.append(self.version)
            if teacher is None:
                self.cluster.after(half, last_token)
            else:
                verdict = teacher.extend(session)
                verdict.when_over(lambda: went_on(verdict))

        def went_on(verdict: Call) -> None:
            if verdict.error is None:
                self.cluster.after(half, last_token)
            else:
                self._drawing.pop(report, None)
                self.finish(report, lambda: _raise(PeerUnavailable("the teacher is gone")))

        def last_token() -> None:
            if report not in self._drawing:
                return
            versions.append(self.version)
            if self.is_alive and not self.hangs:
                del self._drawing[report]
                trajectory.end(Drawn(task, tuple(versions)))
            self.finish(report, lambda: "report")

        self.cluster.after(half, first_token)
        return report, trajectory

    def pull(self, publication: Publication) -> Call:
        def work() -> int:
            self.version = publication.version
            return self.version

        return self.call(self._pull_seconds, work)

    def abandon(self, sessions: Sequence[str]) -> None:
        """It arrives late: after whatever is asked for next."""

        def cancel() -> None:
            for report in [report for report in self._drawing if self._sessions[report] in sessions]:
                del self._drawing[report]
                report.end(error=RuntimeError("cancelled"))

        self.cluster.after(0.1, cancel)


@dataclass
class LostInputs:
    lost_places: tuple[int, ...]
    num_lost: int


@dataclass(frozen=True)
class RankReport:
    """Of one step of one rank: what it was given, and by then has trained in all."""

    given: list[Drawn]
    texts: list[int]
    trained: list[Drawn]


class VirtualRank(VirtualActor):
    """Its weights are the list of what all ranks have trained. It does one thing after another."""

    def __init__(self, cluster: VirtualCluster, index: int, step_seconds: float) -> None:
        super().__init__(cluster)
        self.index = index
        self._step_seconds = step_seconds
        self.trained: list[Drawn] = []
        self._free_at = 0.0
        self.copied: list[Drawn] = []

    def in_turn(self, seconds: float, work: Callable[[], Any] = lambda: None) -> Call:
        self._free_at = max(self._free_at, self.cluster.now) + seconds
        return self.call(self._free_at - self.cluster.now, work)

    def step(self, trajectories: Sequence[Call], payloads: Sequence[Call], texts: Sequence[Any]) -> Call:
        def work() -> Any:
            pairs = list(zip(trajectories, payloads, strict=True))
            if lost := tuple(place for place, pair in enumerate(pairs) if pair[0].is_lost or pair[1].is_lost):
                return LostInputs(lost if self.index == 0 else (), len(lost))
            given = [trajectory.get() for trajectory, _ in pairs]
            assert given == [payload.get() for _, payload in pairs]
            self.trained += given
            return RankReport(given, [text.get() for text in texts], list(self.trained))

        return self.in_turn(self._step_seconds, work)


@dataclass
class VirtualRanks:
    """The ranks of a learner from their meeting on: an Assembly and a Learner. disk: what was written, by folder."""

    ranks: Sequence[VirtualRank]
    disk: dict[Path, list[Drawn]]
    write_seconds: float = 1.0
    published: list[int] = field(default_factory=list)

    @property
    def learner(self) -> "VirtualRanks":
        return self

    def address(self) -> Call:
        return self.ranks[0].in_turn(0.01, lambda: "here")

    def join(self, address: str) -> list[Call]:
        assert address == "here"
        return [rank.in_turn(0.1, lambda: 1) for rank in self.ranks]

    def joined(self, answers: Sequence[int]) -> None:
        assert list(answers) == [1] * len(self.ranks)

    def load(self, folder: Path) -> list[Call]:
        def load(rank: VirtualRank) -> None:
            rank.trained = list(self.disk[folder])

        return [rank.in_turn(0.1, lambda rank=rank: load(rank)) for rank in self.ranks]  # type: ignore[misc]

    def step(self, trajectories: Any, payloads: Any, texts: Any, text_payloads: Any) -> list[Call]:
        return [rank.step(trajectories, payloads, texts) for rank in self.ranks]

    def divergence(self, trajectories: Any, payloads: Any) -> list[Call]:
        raise NotImplementedError

    def publish(self, version: int) -> tuple[Any, Sequence[Any], list[Call]]:
        self.published.append(version)
        return "manifest", ["buffer"], [rank.in_turn(0.05) for rank in self.ranks]

    def snapshot(self, folder: Path) -> list[Call]:
        def copy(rank: VirtualRank) -> None:
            rank.copied = list(rank.trained)

        return [rank.in_turn(0.01, lambda rank=rank: copy(rank)) for rank in self.ranks]  # type: ignore[misc]

    def written(self) -> list[Call]:
        def write(rank: VirtualRank) -> list[Any]:
            return [("record", list(rank.copied))]

        return [rank.call(self.write_seconds, lambda rank=rank: write(rank)) for rank in self.ranks]  # type: ignore[misc]

    def save(self, folder: Path) -> list[Call]:
        raise NotImplementedError


@dataclass
class VirtualLauncher:
    """place_seconds: until resources are there; inf where the cluster has none."""

    cluster: VirtualCluster
    create: Callable[[int], VirtualActor]
    place_seconds: float = 0.1
    started: list[VirtualActor] = field(default_factory=list)
    num_reserved: int = 0
    num_released: int = 0

    def reserve(self, number: int) -> tuple[str, Call]:
        self.num_reserved += 1
        there = Call() if self.place_seconds == float("inf") else self.cluster.ended(self.place_seconds)
        return f"reservation {self.num_reserved}", there

    def missing(self) -> str:
        return "1 GPU is wanted, 0 are free"

    def start(self, number: int, reservation: str) -> VirtualActor:
        self.started.append(self.create(number))
        return self.started[-1]

    def release(self, reservation: str) -> None:
        self.num_released += 1


def _raise(error: Exception) -> None:
    raise error
