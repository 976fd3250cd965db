"""The learner's ranks as one: they meet, take up a state, work together, and fall together.

A rank that dies or hangs takes the group with it: every rank is started again, they meet again, and load the last
checkpoint. What that means for the work in progress is the caller's to say (`on_lost`, then `on_ready`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from minillm_ray.pipeline.protocols import Learner, Reference
from minillm_ray.pipeline.replicas import Member, ReplicaSet


class Assembly(Protocol):
    """Ranks that are about to become a group. Lists hold one reference a rank."""

    @property
    def learner(self) -> Learner: ...
    def address(self) -> Reference: ...
    def join(self, address: str) -> list[Reference]: ...
    def joined(self, answers: Sequence[Any]) -> None: ...
    def load(self, folder: Path) -> list[Reference]: ...


class LearnerRanks:
    """restore_from: the checkpoint that a new group takes up; None for the phase's first weights."""

    def __init__(
        self, ranks: ReplicaSet, assemble: Callable[[Sequence[Any]], Assembly], *, startup_seconds: float
    ) -> None:
        self._ranks = ranks
        self._assemble = assemble
        self._startup_seconds = startup_seconds
        self._under_way: list[str] = []
        self.restore_from: Path | None = None
        self.learner: Any = None
        """The group's Learner; None while there is none that works."""
        self.on_ready: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        ranks.on_ready = lambda member: self._rank_ready()
        ranks.on_lost = lambda member: self._rank_lost(member)

    def start(self, size: int, *, restore_from: Path | None) -> None:
        """Begin; `on_ready` comes once all ranks have met and loaded."""
        self.restore_from = restore_from
        self._ranks.scale(size)

    @property
    def work_under_way(self) -> str | None:
        """What the group is at: the first of the calls that are not answered by all ranks; None while it waits."""
        return self._under_way[0] if self._under_way else None

    def call_all(
        self,
        references: Sequence[Reference],
        *,
        seconds: float,
        done: Callable[[list[Any]], None],
        work: str,
        beside: bool = False,
    ) -> None:
        """Expect one call of each rank: `done` with all values, in rank order. A failure is the end of the group
        and of all its calls.

        beside: the ranks do other work meanwhile.
        """
        values: dict[int, Any] = {}
        members = self._ranks.members
        if not beside:
            self._under_way.append(work)

        def collect(rank: int) -> Callable[[Any], None]:
            def came(value: Any) -> None:
                values[rank] = value
                if len(values) == len(members):
                    if not beside:
                        self._under_way.remove(work)
                    done([values[rank] for rank in range(len(members))])

            return came

        for rank, (member, reference) in enumerate(zip(members, references, strict=True)):
            self._ranks.call(member, reference, seconds=seconds, done=collect(rank), work=work)

    def restart(self, reason: str) -> None:
        """Have the group start again though all of its ranks live."""
        self._ranks.lose(self._ranks.members[0], reason)

    def _rank_ready(self) -> None:
        members = self._ranks.members
        if len(self._ranks.serving) < len(members):
            return
        assembly = self._assemble([member.client for member in members])
        self._ranks.call(
            members[0],
            assembly.address(),
            seconds=self._startup_seconds,
            done=lambda address: self._join(assembly, address),
            work="choosing an address",
        )

    def _join(self, assembly: Assembly, address: str) -> None:
        self.call_all(
            assembly.join(address),
            seconds=self._startup_seconds,
            done=lambda answers: self._load(assembly, answers),
            work="loading the student",
        )

    def _load(self, assembly: Assembly, answers: Sequence[Any]) -> None:
        assembly.joined(answers)
        if self.restore_from is None:
            self._ready(assembly)
            return
        self.call_all(
            assembly.load(self.restore_from),
            seconds=self._startup_seconds,
            done=lambda _: self._ready(assembly),
            work="loading the checkpoint",
        )

    def _ready(self, assembly: Assembly) -> None:
        self.learner = assembly.learner
        self.on_ready()

    def _rank_lost(self, lost: Member) -> None:
        self._under_way.clear()
        self.learner = None
        for member in self._ranks.members:
            if member is not lost:
                self._ranks.restart(member)
        self.on_lost()
