"""The driver's view of a learner group: every call goes to all ranks at once and has one deadline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import ObjectRef

from minillm_ray.learner.distillation import StepReport
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.remote import get
from minillm_ray.telemetry.reductions import Mean


class LearnerGroup:
    """K ranks that act as one. handles: Ray actor handles, rank 0 first."""

    def __init__(self, handles: Sequence[Any], *, timeout_seconds: float) -> None:
        self._handles = list(handles)
        self._timeout_seconds = timeout_seconds

    def join(self, *, startup_timeout_seconds: float) -> None:
        """The ranks meet and load the model."""
        address = get(
            self._handles[0].address.remote(), timeout_seconds=startup_timeout_seconds, work="learner: starting"
        )
        get(
            [handle.join.remote(address, startup_timeout_seconds) for handle in self._handles],
            timeout_seconds=startup_timeout_seconds,
            work="learner: loading the student",
        )

    def save(self, folder: Path) -> None:
        """Write the model to `folder` in Hugging Face format."""
        self._all([handle.save.remote(folder) for handle in self._handles], "saving the model")

    def _all(self, references: list[ObjectRef], work: str) -> list[Any]:
        return get(references, timeout_seconds=self._timeout_seconds, work=f"learner: {work}")


class SupervisedGroup(LearnerGroup):
    """Ranks of SupervisedActor."""

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]:
        """One optimizer step on these rows; the loss in nats a token, the same on every rank."""
        return self._all([handle.step.remote(list(rows)) for handle in self._handles], "a supervised step")[0]

    def validation_loss(self) -> float:
        """Mean loss of the held-out rows, nats a token."""
        return self._all([handle.validation_loss.remote() for handle in self._handles], "validation")[0]


class DistillationGroup(LearnerGroup):
    """Ranks of DistillationActor. References of one minibatch are dealt to the ranks in turn."""

    def join(self, *, startup_timeout_seconds: float) -> None:
        super().join(startup_timeout_seconds=startup_timeout_seconds)
        self._num_buckets = self._all([self._handles[0].num_buckets.remote()], "planning the weights")[0]

    def step(
        self,
        trajectories: Sequence[ObjectRef],
        payloads: Sequence[ObjectRef],
        texts: Sequence[ObjectRef] = (),
        text_payloads: Sequence[ObjectRef] = (),
    ) -> list[StepReport]:
        """One optimizer step on a minibatch and on plain text; a report of each rank."""
        return self._all(self._dealt("step", trajectories, payloads, texts, text_payloads), "an optimizer step")

    def divergence(self, trajectories: Sequence[ObjectRef], payloads: Sequence[ObjectRef]) -> Mean:
        """Exact reverse KL to the teacher over these responses; nothing is trained."""
        parts = self._all(self._dealt("divergence", trajectories, payloads), "measuring the divergence")
        return Mean(sum(part.sum for part in parts), sum(part.count for part in parts))

    def publish(self, version: int) -> tuple[ObjectRef, list[ObjectRef]]:
        """References to the manifest and the buffers of the current weights, as `version`, once they are there."""
        first, *others = self._handles
        manifest, *buffers = first.publish.options(num_returns=1 + self._num_buckets).remote(version)
        self._all([other.publish.remote(version) for other in others], "publishing weights")
        self._all([manifest], "publishing weights")
        return manifest, buffers

    def _dealt(self, method: str, *references: Sequence[ObjectRef]) -> list[ObjectRef]:
        """The call on every rank; each list of references is dealt to the ranks in turn."""
        size = len(self._handles)
        return [
            getattr(handle, method).remote(*(list(part[rank::size]) for part in references), self._timeout_seconds)
            for rank, handle in enumerate(self._handles)
        ]
