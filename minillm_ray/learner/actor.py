"""The Ray actors of a learner rank: one for supervised phases, one for MiniLLM. No arithmetic here."""

import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import ObjectRef

from minillm_ray.data.sets import SupervisedSet
from minillm_ray.engines.heads import load_head
from minillm_ray.learner.distillation import DistillationLearner, StepReport
from minillm_ray.learner.process import RankProcess, TrainingSpec
from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.scored_batch import Scored
from minillm_ray.learner.supervised import SupervisedLearner
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.telemetry.reductions import Mean
from minillm_ray.weights.buffers import pack, plan_layout


@ray.remote
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


@ray.remote
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
        publish_dtype: str,
        bucket_bytes: int,
        bad_batch_folder: Path,
        probe_every: int | None,
    ) -> None:
        super().__init__(spec, index, size, log_file)
        self._bad_batch_file = bad_batch_folder / f"rank-{index}.safetensors"
        self._probe_every = probe_every
        self._settings = settings
        self._teacher, self._teacher_dtype = teacher, teacher_dtype
        self._samples_per_step = samples_per_step
        self._publish_dtype = getattr(torch, publish_dtype)
        self._bucket_bytes = bucket_bytes

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
        self._layout = plan_layout(
            self.trainer.student.named_weights(), dtype=self._publish_dtype, bucket_bytes=self._bucket_bytes
        )

    def num_buckets(self) -> int:
        """Buffers that `publish` returns beside the manifest."""
        return len(self._layout.bucket_bytes)

    def publish(self, version: int) -> list[Any] | None:
        """Every rank calls it. Rank 0 returns the manifest and the buffers of these weights: 1 + n returns."""
        tensors = self.trainer.student.named_weights()
        if self._index:
            for _ in tensors:
                pass
            return None
        manifest, buffers = pack(tensors, self._layout, version=version)
        return [manifest, *buffers]

    def step(
        self,
        trajectories: list[ObjectRef],
        payloads: list[ObjectRef],
        texts: list[ObjectRef],
        text_payloads: list[ObjectRef],
        timeout_seconds: float,
    ) -> StepReport:
        """One optimizer step on this rank's share of a minibatch and of plain text, fetched here and by nobody else."""
        scored = _fetch(trajectories, payloads, timeout_seconds)
        return self._learner.step(scored, _fetch(texts, text_payloads, timeout_seconds))

    def divergence(self, trajectories: list[ObjectRef], payloads: list[ObjectRef], timeout_seconds: float) -> Mean:
        """Exact reverse KL to the teacher over these responses; nothing is trained."""
        return self._learner.divergence(_fetch(trajectories, payloads, timeout_seconds))


def _fetch(trajectories: list[ObjectRef], payloads: list[ObjectRef], timeout_seconds: float) -> list[Scored]:
    deadline = time.monotonic() + timeout_seconds
    fetched = ray.get(trajectories, timeout=timeout_seconds)
    hidden = ray.get(payloads, timeout=max(1.0, deadline - time.monotonic()))
    return list(zip(fetched, hidden, strict=True))
