"""The driver's view of a learner group: every call goes to all ranks at once and has one deadline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import ObjectRef

from minillm_ray.checkpoint.files import CheckpointError, FileRecord
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.remote import ActorClient, get


def written_files(parts: Sequence[Sequence[FileRecord] | CheckpointError]) -> list[FileRecord]:
    """The files of all ranks. Raises the CheckpointError that one of them answered with."""
    files: list[FileRecord] = []
    for part in parts:
        if isinstance(part, CheckpointError):
            raise part
        files.extend(part)
    return files


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

    def load(self, folder: Path) -> None:
        """Take up the state in a checkpoint."""
        self._all([handle.load.remote(folder) for handle in self._handles], "loading the checkpoint")

    def snapshot(self, folder: Path) -> None:
        """Copy the state and begin to write it below `folder`, beside the next steps."""
        self._all([handle.snapshot.remote(folder) for handle in self._handles], "copying its state")

    def written(self) -> list[FileRecord]:
        """The files of the last snapshot, once they are on disk. Raises CheckpointError where they are not."""
        return written_files(self._all([handle.written.remote() for handle in self._handles], "writing its state"))

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


class RankClient(ActorClient):
    """One rank, of either actor."""


class DistillationRanks:
    """Ranks of DistillationActor, rank 0 first, from their meeting on. Nothing here waits.

    References of one minibatch are dealt to the ranks in turn; lists of references hold one a rank.
    """

    def __init__(self, clients: Sequence[RankClient], *, startup_seconds: float, call_seconds: float) -> None:
        self._handles = [client.handle for client in clients]
        self._startup_seconds, self._call_seconds = startup_seconds, call_seconds
        self._num_buffers = 0

    @property
    def learner(self) -> "DistillationRanks":
        return self

    def address(self) -> ObjectRef:
        """Where the ranks can meet."""
        return self._handles[0].address.remote()

    def join(self, address: str) -> list[ObjectRef]:
        """Each rank meets the others and loads the student; it answers with the number of buffers of `publish`."""
        return [handle.join.remote(address, self._startup_seconds) for handle in self._handles]

    def joined(self, answers: Sequence[int]) -> None:
        """Hear what `join` answered."""
        self._num_buffers = answers[0]

    def load(self, folder: Path) -> list[ObjectRef]:
        """Each rank takes up the state in a checkpoint."""
        return [handle.load.remote(folder) for handle in self._handles]

    def step(
        self,
        trajectories: Sequence[ObjectRef],
        payloads: Sequence[ObjectRef],
        texts: Sequence[ObjectRef],
        text_payloads: Sequence[ObjectRef],
    ) -> list[ObjectRef]:
        """One optimizer step on a minibatch and on plain text: a StepReport of each rank, or LostInputs."""
        return self._dealt("step", trajectories, payloads, texts, text_payloads)

    def divergence(self, trajectories: Sequence[ObjectRef], payloads: Sequence[ObjectRef]) -> list[ObjectRef]:
        """Exact reverse KL to the teacher over these responses: a Mean of each rank, or LostInputs."""
        return self._dealt("divergence", trajectories, payloads)

    def text_loss(self, texts: Sequence[ObjectRef], payloads: Sequence[ObjectRef]) -> list[ObjectRef]:
        """The text term of `step` over these texts, untrained: a Mean of each rank, or LostInputs."""
        return self._dealt("text_loss", texts, payloads)

    def publish(self, version: int) -> tuple[ObjectRef, list[ObjectRef], list[ObjectRef]]:
        """The current weights as `version`: references to the manifest, to the buffers, and to each rank's end."""
        first, *others = self._handles
        returned = first.publish.options(num_returns=self._num_buffers + 1).remote(version)
        *buffers, manifest = returned if self._num_buffers else [returned]
        return manifest, buffers, [manifest, *(other.publish.remote(version) for other in others)]

    def snapshot(self, folder: Path) -> list[ObjectRef]:
        """Each rank copies its state and begins to write it."""
        return [handle.snapshot.remote(folder) for handle in self._handles]

    def written(self) -> list[ObjectRef]:
        """The records of each rank's files, once they are on disk."""
        return [handle.written.remote() for handle in self._handles]

    def save(self, folder: Path) -> list[ObjectRef]:
        """The model in Hugging Face format."""
        return [handle.save.remote(folder) for handle in self._handles]

    def _dealt(self, method: str, *references: Sequence[ObjectRef]) -> list[ObjectRef]:
        """The call on every rank; each list of references is dealt to the ranks in turn."""
        size = len(self._handles)
        return [
            getattr(handle, method).remote(*(list(part[rank::size]) for part in references), self._call_seconds)
            for rank, handle in enumerate(self._handles)
        ]
