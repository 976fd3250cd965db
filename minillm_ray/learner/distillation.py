"""MiniLLM's optimizer step: both gradients from one pass over the student's states and the teacher's.

The student's log-probabilities are those of the current weights; the sampler's say only what the tokens were drawn
with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.learner.micro_batches import MicroBatch, collate, split_by_tokens
from minillm_ray.learner.step_metrics import combine_step, micro_batch_metrics
from minillm_ray.learner.trainer import StepOutcome, StudentTrainer
from minillm_ray.objective import Head, MiniLLMResult, ObjectiveSettings, minillm_loss
from minillm_ray.telemetry.reductions import Mean, Reduction

Scored = tuple[Trajectory, HiddenPayload]


@dataclass(frozen=True)
class TrainedTrajectory:
    """A trajectory of n tokens with what the step computed for each: float32 [n], nats."""

    trajectory: Trajectory
    kl: np.ndarray
    student_logprob: np.ndarray
    teacher_logprob: np.ndarray


@dataclass(frozen=True)
class StepReport:
    """One rank's part of a step. metrics: statistics to combine over ranks. samples: the first few trajectories."""

    metrics: dict[str, Reduction]
    outcome: StepOutcome
    samples: tuple[TrainedTrajectory, ...]


class DistillationLearner:
    """One rank of the learner: its share of each minibatch, the same step as all other ranks."""

    def __init__(
        self,
        trainer: StudentTrainer,
        *,
        teacher_head: Head,
        settings: ObjectiveSettings,
        micro_batch_tokens: int,
        samples_per_step: int,
    ) -> None:
        self.trainer = trainer
        self._teacher_head = teacher_head
        self._settings = settings
        self._micro_batch_tokens = micro_batch_tokens
        self._samples_per_step = samples_per_step

    def step(self, scored: Sequence[Scored]) -> StepReport:
        """One optimizer step on this rank's share of a minibatch. Every rank calls it, with an empty share too."""
        batches, tensors = self._micro_batches(scored)
        num_tokens = sum(len(batch.tokens) for batch in batches)
        share = sum(self._settings.normalizer_share(len(batch.tokens), len(batch.members)) for batch in batches)
        normalizer = self.trainer.rank.sum([float(share)])[0]
        parts: list[dict[str, Reduction]] = []
        trained: dict[int, TrainedTrajectory] = {}

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            result = self._objective(batch, hidden, head, tensors, normalizer)
            parts.append(micro_batch_metrics(batch, result, _packed(batch, tensors.sampler_logprob)))
            trained.update(_trained(batch, result, scored, self._samples_per_step))
            return result.loss

        outcome = self.trainer.step(batches, loss)
        samples = tuple(trained[number] for number in sorted(trained))
        metrics = combine_step(parts) | {
            "rollout/response_tokens/mean": Mean(float(num_tokens), float(len(scored))),
            "rollout/truncated_fraction/mean": Mean(float(sum(t.truncated for t, _ in scored)), float(len(scored))),
        }
        return StepReport(metrics, outcome, samples)

    @torch.no_grad()
    def divergence(self, scored: Sequence[Scored]) -> Mean:
        """Exact reverse KL to the teacher over this rank's response tokens, nats. Nothing is trained."""
        batches, tensors = self._micro_batches(scored)
        total, num_tokens = 0.0, 0

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            nonlocal total, num_tokens
            result = self._objective(batch, hidden, head, tensors, 1.0)
            total += float(result.kl.sum())
            num_tokens += len(batch.tokens)
            return result.loss

        for number in range(int(self.trainer.rank.max([float(len(batches))])[0])):
            self.trainer.forward(batches[number] if number < len(batches) else None, loss)
        return Mean(total, float(num_tokens))

    def _objective(
        self, batch: MicroBatch, hidden: Tensor, head: Head, tensors: "_TeacherAndSampler", normalizer: float
    ) -> MiniLLMResult:
        return minillm_loss(
            hidden,
            head,
            _packed(batch, tensors.hidden),
            self._teacher_head,
            batch.tokens,
            batch.cu_seqlens,
            _packed(batch, tensors.sampler_logprob),
            None if tensors.behavior_logprob is None else _packed(batch, tensors.behavior_logprob),
            self._settings,
            normalizer=normalizer,
        )

    def _micro_batches(self, scored: Sequence[Scored]) -> tuple[list[MicroBatch], "_TeacherAndSampler"]:
        sequences = [trajectory.token_ids for trajectory, _ in scored]
        prompt_lengths = [len(trajectory.prompt_ids) for trajectory, _ in scored]
        device = self.trainer.rank.device
        groups = split_by_tokens([len(sequence) for sequence in sequences], self._micro_batch_tokens)
        batches = [collate(sequences, prompt_lengths, group).to(device) for group in groups]
        mixed = bool(scored) and all(trajectory.behavior_logprob is not None for trajectory, _ in scored)
        return batches, _TeacherAndSampler(
            hidden=[decode_hidden(payload).to(device) for _, payload in scored],
            sampler_logprob=[torch.tensor(trajectory.sampler_logprob, device=device) for trajectory, _ in scored],
            behavior_logprob=(
                [torch.tensor(trajectory.behavior_logprob, device=device) for trajectory, _ in scored]
                if mixed
                else None
            ),
        )


@dataclass(frozen=True)
class _TeacherAndSampler:
    """What came with each trajectory, by its number in the share: [n, d_t] and [n]."""

    hidden: list[Tensor]
    sampler_logprob: list[Tensor]
    behavior_logprob: list[Tensor] | None


def _packed(batch: MicroBatch, items: Sequence[Tensor]) -> Tensor:
    return torch.cat([items[member] for member in batch.members])


def _trained(
    batch: MicroBatch, result: MiniLLMResult, scored: Sequence[Scored], limit: int
) -> dict[int, TrainedTrajectory]:
    """Those of the batch whose number is below `limit`, by number."""
    bounds = batch.cu_seqlens.tolist()
    found = {}
    for place, member in enumerate(batch.members):
        if member < limit:
            slots = slice(bounds[place], bounds[place + 1])
            found[member] = TrainedTrajectory(
                trajectory=scored[member][0],
                kl=result.kl[slots].float().cpu().numpy(),
                student_logprob=result.student_logprob[slots].float().cpu().numpy(),
                teacher_logprob=result.teacher_logprob[slots].float().cpu().numpy(),
            )
    return found
