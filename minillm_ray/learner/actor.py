"""The Ray actors of a learner rank: one for supervised phases, one for MiniLLM. No arithmetic here."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray import ObjectRef
from ray.exceptions import RayError

from minillm_ray.data.sets import SupervisedSet
from minillm_ray.engines.heads import load_head
from minillm_ray.learner.distillation import DistillationLearner, StepReport
from minillm_ray.learner.process import CONCURRENCY_GROUPS, RankProcess, TrainingSpec
from minillm_ray.learner.publishing import PublishingSpec, make_publisher
from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.scored_batch import Scored
from minillm_ray.learner.supervised import SupervisedLearner
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.telemetry.reductions import Mean
from minillm_ray.weights.nccl import NcclPublisher


@dataclass(frozen=True)
class LostInputs:
    """A step that was not made. lost_places: of this rank's share in the whole minibatch; num_lost: over all ranks."""

    lost_places: tuple[int, ...]
    num_lost: int


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS)
class SupervisedActor(RankProcess):
    """Process boundary of one rank in a supervised phase."""

    def __init__(
        self,
        spec: TrainingSpec,
        index: int,
        size: int,
        log_file: Path,
        train: SupervisedSet,
        validation: SupervisedSet,
    ) -> None:
        super().__init__(spec, index, size, log_file)
        self._train, self._validation = train, validation

    def _on_joined(self, rank: Rank) -> None:
        self._learner = SupervisedLearner(
            self.trainer,
            train=self._train,
            validation=self._validation,
            micro_batch_tokens=self._spec.micro_batch_tokens,
            logits_memory_mb=self._spec.logits_memory_mb,
        )

    def step(self, rows: list[int]) -> tuple[float, StepOutcome]:
        """One optimizer step on these rows; its loss in nats a token."""
        return self._learner.step(rows)

    def validation_loss(self) -> float:
        """Mean loss of the held-out rows, nats a token."""
        return self._learner.validation_loss()


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS | {"weights": 1})
class DistillationActor(RankProcess):
    """Process boundary of one rank in the MiniLLM phase."""

    def __init__(
        self,
        spec: TrainingSpec,
        index: int,
        size: int,
        log_file: Path,
        settings: ObjectiveSettings,
        teacher: str,
        teacher_dtype: str,
        samples_per_step: int,
        publishing: PublishingSpec,
        bad_batch_folder: Path,
        probe_every: int | None,
    ) -> None:
        super().__init__(spec, index, size, log_file)
        self._bad_batch_file = bad_batch_folder / f"rank-{index}.safetensors"
        self._probe_every = probe_every
        self._settings = settings
        self._teacher, self._teacher_dtype = teacher, teacher_dtype
        self._samples_per_step = samples_per_step
        self._publishing = publishing

    def _on_joined(self, rank: Rank) -> None:
        spec = self._spec
        teacher_head = load_head(
            self._teacher,
            vocabulary_size=spec.vocabulary_size,
            dtype=getattr(torch, self._teacher_dtype),
            device=str(rank.device),
        )
        self._learner = DistillationLearner(
            self.trainer,
            teacher_head=teacher_head,
            settings=self._settings,
            micro_batch_tokens=spec.micro_batch_tokens,
            samples_per_step=self._samples_per_step if rank.index == 0 else 0,
            bad_batch_file=self._bad_batch_file,
            probe_every=self._probe_every,
        )
        self._publisher = make_publisher(
            self._publishing,
            self.trainer.student.named_weights(),
            own_handle=lambda: ray.get_runtime_context().current_actor,
            free_address=self.address,
        )

    @property
    def num_buffers(self) -> int:
        """Of one published version."""
        return self._publisher.num_buffers

    def publish(self, version: int) -> Any:
        """Every rank calls it. Rank 0 returns n buffers and what was published: n + 1 returns, stored one by one."""
        tensors = self.trainer.student.named_weights()
        if self._index:
            for _ in tensors:
                pass
            return None
        returns = self._publisher.publish(tensors, version=version)
        return returns if self._publisher.num_buffers else next(returns)  # Ray takes a single return as it is

    @ray.method(concurrency_group="weights")
    def send_weights(self, name: str, replica: Any) -> int:
        """Asked by the rollout replica `replica` that was offered a version, beside the training. Returns the version.

        Raises TransferFailed: the replica is then of no more use.
        """
        return cast(NcclPublisher, self._publisher).send(name, replica)

    def step(
        self,
        trajectories: list[ObjectRef],
        payloads: list[ObjectRef],
        texts: list[ObjectRef],
        text_payloads: list[ObjectRef],
        timeout_seconds: float,
    ) -> StepReport | LostInputs:
        """One optimizer step on this rank's share of a minibatch and of plain text, fetched here and by nobody else.

        Where something of any rank's share cannot be had, no rank makes the step.
        """
        deadline = time.monotonic() + timeout_seconds
        scored, lost = _fetch(trajectories, payloads, deadline)
        written, lost_texts = _fetch(texts, text_payloads, deadline)
        [num_lost] = self.trainer.rank.sum([float(len(lost) + len(lost_texts))])
        if num_lost:
            return LostInputs(tuple(self._index + place * self._size for place in lost), int(num_lost))
        return self._learner.step(scored, written)

    def divergence(
        self, trajectories: list[ObjectRef], payloads: list[ObjectRef], timeout_seconds: float
    ) -> Mean | LostInputs:
        """Exact reverse KL to the teacher over these responses; nothing is trained."""
        scored = self._fetch_all(trajectories, payloads, timeout_seconds)
        return scored if isinstance(scored, LostInputs) else self._learner.divergence(scored)

    def text_loss(self, texts: list[ObjectRef], payloads: list[ObjectRef], timeout_seconds: float) -> Mean | LostInputs:
        """The text term of `step` over these texts; nothing is trained."""
        scored = self._fetch_all(texts, payloads, timeout_seconds)
        return scored if isinstance(scored, LostInputs) else self._learner.text_loss(scored)

    def _fetch_all(
        self, trajectories: list[ObjectRef], payloads: list[ObjectRef], timeout_seconds: float
    ) -> list[Scored] | LostInputs:
        """This rank's share, or what of it is lost, where something of any rank's is."""
        scored, lost = _fetch(trajectories, payloads, time.monotonic() + timeout_seconds)
        [num_lost] = self.trainer.rank.sum([float(len(lost))])
        if num_lost:
            return LostInputs(tuple(self._index + place * self._size for place in lost), int(num_lost))
        return scored


def _fetch(trajectories: list[ObjectRef], payloads: list[ObjectRef], deadline: float) -> tuple[list[Scored], list[int]]:
    """What could be had, and the places of what could not: it went with the node that held it."""
    fetched: list[Scored] = []
    lost: list[int] = []
    everything = [*trajectories, *payloads]
    if everything:  # all transfers at once
        ray.wait(everything, num_returns=len(everything), timeout=max(0.0, deadline - time.monotonic()))
    for place, pair in enumerate(zip(trajectories, payloads, strict=True)):
        try:
            trajectory, payload = ray.get(list(pair), timeout=max(1.0, deadline - time.monotonic()))
            fetched.append((trajectory, payload))
        except RayError:
            lost.append(place)
    return fetched, lost
