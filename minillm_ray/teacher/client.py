"""The driver's view of the teacher replicas: references in, references out."""

from collections.abc import Sequence
from typing import Any

from ray import ObjectRef

from minillm_ray.remote import even_shares, get


class TeacherPool:
    """M teacher actors that share the trajectories of a call. handles: Ray actor handles of TeacherActor."""

    def __init__(self, handles: Sequence[Any], *, timeout_seconds: float) -> None:
        self._handles = list(handles)
        self._timeout_seconds = timeout_seconds

    def ready(self, *, startup_timeout_seconds: float) -> None:
        """Until every replica has loaded its engine."""
        get(
            [handle.ready.remote() for handle in self._handles],
            timeout_seconds=startup_timeout_seconds,
            work="teacher: loading the engine",
        )

    def score(self, trajectories: Sequence[ObjectRef]) -> tuple[list[ObjectRef], int]:
        """A reference to a payload for each trajectory, in order, once all are scored; and their bytes in all."""
        payloads: list[ObjectRef] = []
        sizes: list[ObjectRef] = []
        for handle, share in zip(self._handles, even_shares(trajectories, len(self._handles)), strict=True):
            if share:
                call = handle.score.options(num_returns=1 + len(share))
                size, *references = call.remote(share, self._timeout_seconds)
                sizes.append(size)
                payloads += references
        num_bytes = get(sizes, timeout_seconds=self._timeout_seconds, work="teacher: scoring responses")
        return payloads, sum(num_bytes)
