"""The driver's view of the rollout replicas: references in, references out."""

from collections.abc import Sequence
from typing import Any

from ray import ObjectRef

from minillm_ray.remote import even_shares, get


class RolloutPool:
    """R rollout actors that share the prompts of a call. handles: Ray actor handles of RolloutActor."""

    def __init__(self, handles: Sequence[Any], *, timeout_seconds: float) -> None:
        self._handles = list(handles)
        self._timeout_seconds = timeout_seconds

    def ready(self, *, startup_timeout_seconds: float) -> None:
        """Until every replica has loaded its engine."""
        get(
            [handle.ready.remote() for handle in self._handles],
            timeout_seconds=startup_timeout_seconds,
            work="rollout: loading the engine",
        )

    def generate(self, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[ObjectRef]:
        """A reference to a trajectory for each prompt, in order, once all are drawn."""
        trajectories: list[ObjectRef] = []
        counts: list[ObjectRef] = []
        for handle, share in zip(self._handles, even_shares(prompt_indices, len(self._handles)), strict=True):
            if share:
                call = handle.generate.options(num_returns=1 + len(share))
                count, *references = call.remote(split, share, draw)
                counts.append(count)
                trajectories += references
        get(counts, timeout_seconds=self._timeout_seconds, work="rollout: sampling responses")
        return trajectories

    def pull(self, manifest: ObjectRef, buffers: Sequence[ObjectRef], version: int) -> None:
        """Every replica loads `version` from the published buffers before this returns."""
        pulled = get(
            [handle.pull.remote(manifest, *buffers) for handle in self._handles],
            timeout_seconds=self._timeout_seconds,
            work=f"rollout: pulling weight version {version}",
        )
        assert pulled == [version] * len(self._handles)
