"""The roles as the pipeline sees them: references go in and out, nothing here knows what they refer to."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Reference: TypeAlias = Any
"""A reference to an object of the cluster. Its bytes never pass through the pipeline."""


class Rollout(Protocol):
    """All rollout replicas together."""

    def generate(self, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[Reference]: ...
    def pull(self, manifest: Reference, buffers: Sequence[Reference], version: int) -> None: ...


class Teacher(Protocol):
    """All teacher replicas together."""

    def score(self, trajectories: Sequence[Reference]) -> tuple[list[Reference], int]: ...


class Learner(Protocol):
    """All learner ranks together. `step` returns a report of each rank."""

    def step(
        self,
        trajectories: Sequence[Reference],
        payloads: Sequence[Reference],
        texts: Sequence[Reference],
        text_payloads: Sequence[Reference],
    ) -> list[Any]: ...
    def publish(self, version: int) -> tuple[Reference, list[Reference]]: ...


class PlainText(Protocol):
    """A supply of plain text for the language-modelling term: chunks and what the teacher says of them."""

    def next(self) -> tuple[list[Reference], list[Reference]]: ...
