"""The roles as the pipeline sees them: every call returns references at once, nothing here knows what they refer to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Reference: TypeAlias = Any
"""A reference to an object of the cluster. Its bytes never pass through the pipeline."""


@dataclass(frozen=True)
class Task:
    """A response to be drawn. draw tells apart several responses to one prompt; mixed: with the teacher's share."""

    split: str
    prompt_index: int
    draw: int
    mixed: bool


@dataclass(frozen=True)
class Publication:
    """A version of the weights: a reference to its manifest and to each of its buffers."""

    version: int
    manifest: Reference
    buffers: Sequence[Reference]


class Replica(Protocol):
    """One replica of any role. `stop` ends it, whatever it is doing."""

    def ready(self) -> Reference: ...
    def ping(self) -> Reference: ...
    def stop(self) -> None: ...


class TeacherReplica(Replica, Protocol):
    """`score` gives references to a small report and to the payload.

    exact: the payload is hidden states, whatever the run trains on.
    """

    def score(self, trajectory: Reference, session: str | None, *, exact: bool) -> tuple[Reference, Reference]: ...
    def forget(self, session: str) -> None: ...


class RolloutReplica(Replica, Protocol):
    """`respond` gives references to a small report and to the trajectory; with a teacher the response is mixed.

    together: key, size and place of requests that enter the engine in one go. `abandon` aborts what is drawn for these
    sessions; what is asked for next may reach the replica before it does, and goes on.
    """

    def respond(
        self, task: Task, *, teacher: TeacherReplica | None, session: str, together: tuple[str, int, int] | None
    ) -> tuple[Reference, Reference]: ...
    def pull(self, publication: Publication) -> Reference: ...
    def abandon(self, sessions: Sequence[str]) -> None: ...


class Learner(Protocol):
    """All learner ranks together, once they have met. Lists of references hold one for each rank.

    publish gives the manifest, the buffers, and what tells that every rank has done its part.
    """

    def step(
        self,
        trajectories: Sequence[Reference],
        payloads: Sequence[Reference],
        texts: Sequence[Reference],
        text_payloads: Sequence[Reference],
    ) -> list[Reference]: ...
    def divergence(self, trajectories: Sequence[Reference], payloads: Sequence[Reference]) -> list[Reference]: ...
    def text_loss(self, texts: Sequence[Reference], payloads: Sequence[Reference]) -> list[Reference]: ...
    def publish(self, version: int) -> tuple[Reference, Sequence[Reference], list[Reference]]: ...
    def snapshot(self, folder: Path) -> list[Reference]: ...
    def written(self) -> list[Reference]: ...
    def save(self, folder: Path) -> list[Reference]: ...


class PlainText(Protocol):
    """Plain text for the language-modelling term, chunk after chunk. with_teacher: the term needs the teacher's word.

    chunk gives a reference to chunk number `number` of the endless supply, no_payload one that stands for none.
    """

    chunks_a_step: int
    with_teacher: bool

    def chunk(self, number: int) -> Reference: ...
    def no_payload(self) -> Reference: ...
