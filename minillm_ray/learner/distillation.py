"""MiniLLM's optimizer step: both gradients from one pass over the student's states and the teacher's, and plain text.

The student's log-probabilities are those of the current weights; the sampler's say only what the tokens were drawn
with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.learner.bad_batch import write_bad_batch
from minillm_ray.learner.micro_batches import MicroBatch
from minillm_ray.learner.probe import signal_to_noise
from minillm_ray.learner.scored_batch import Scored, ScoredBatch, scored_batch
from minillm_ray.learner.step_metrics import combine_step, micro_batch_metrics
from minillm_ray.learner.trainer import Loss, StepOutcome, StudentTrainer
from minillm_ray.objective import (
    Head,
    MiniLLMResult,
    ObjectiveSettings,
    TeacherArgument,
    minillm_loss,
    term_gradients,
    text_loss,
)
from minillm_ray.telemetry.reductions import Mean, Reduction, Sum

Inputs = tuple[Tensor, Head, TeacherArgument, Head | None, Tensor, Tensor, Tensor, Tensor | None, ObjectiveSettings]
"""The positional arguments of `minillm_loss`, the normaliser left out."""


@dataclass(frozen=True)
class TrainedTrajectory:
    """A trajectory of n tokens with what the step computed for each: float32 [n], nats. kl as in MiniLLMResult."""

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
    """One rank of the learner: its share of each minibatch, the same step as all other ranks.

    bad_batch_file: where a share goes whose gradient was not finite. probe_every: steps between two measurements of
    the long-term gradient's signal-to-noise ratio; None for none.
    """

    def __init__(
        self,
        trainer: StudentTrainer,
        *,
        teacher_head: Head,
        settings: ObjectiveSettings,
        micro_batch_tokens: int,
        samples_per_step: int,
        bad_batch_file: Path | None = None,
        probe_every: int | None = None,
    ) -> None:
        self.trainer = trainer
        self._teacher_head = teacher_head
        self._settings = settings
        self._micro_batch_tokens = micro_batch_tokens
        self._samples_per_step = samples_per_step
        self._bad_batch_file = bad_batch_file
        self._probe_every = probe_every

    def step(self, scored: Sequence[Scored], texts: Sequence[Scored] = ()) -> StepReport:
        """One optimizer step on this rank's share of a minibatch and of plain text. Every rank calls it.

        scored: payloads of one kind, whichever; with log-probabilities of sampled tokens alone, `settings` must ask for
        sampled later rewards. texts: chunks as trajectories of one prompt token; their payloads are hidden states, and
        are read only where text_kd_ratio is above 0.
        """
        rank = self.trainer.rank
        if self._settings.text_kd_ratio > 0:
            _require_hidden(texts, "objective.text_kd_ratio above 0")
        rollouts, text = self._on_device(scored), self._on_device(texts)
        share = sum(
            self._settings.normalizer_share(len(batch.tokens), len(batch.members)) for batch in rollouts.micro_batches
        )
        text_tokens = sum(len(batch.tokens) for batch in text.micro_batches)
        normalizer, text_normalizer = rank.sum([float(share), float(text_tokens)])
        parts: list[dict[str, Reduction]] = []
        trained: dict[int, TrainedTrajectory] = {}

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            if not bool(hidden.isfinite().all()):
                return hidden.sum() * float("nan")  # the trainer skips the step, on all ranks alike
            if any(batch is other for other in text.micro_batches):
                value = self._text_loss(batch, hidden, head, text, text_normalizer)
                weighted = float(value.detach())
                parts.append(
                    {
                        "objective/loss/text": Sum(weighted / self._settings.lm_coef),
                        "objective/loss/total": Sum(weighted),
                    }
                )
                return value
            result = self._objective(batch, hidden, head, rollouts, normalizer)
            parts.append(micro_batch_metrics(batch, result, rollouts.sampler(batch)))
            if self._is_probed and len(batch.members) > 1:
                parts.append(self._probe(batch, hidden, head, rollouts))
            trained.update(_trained(batch, result, scored, self._samples_per_step))
            return result.loss

        outcome = self.trainer.step([*rollouts.micro_batches, *text.micro_batches], loss)
        if not outcome.applied and self._bad_batch_file is not None:
            write_bad_batch(self._bad_batch_file, [*scored, *texts])
        samples = tuple(trained[number] for number in sorted(trained))
        num_tokens = sum(len(batch.tokens) for batch in rollouts.micro_batches)
        metrics = combine_step(parts) | {
            "rollout/response_tokens/mean": Mean(float(num_tokens), float(len(scored))),
            "rollout/truncated_fraction/mean": Mean(float(sum(t.truncated for t, _ in scored)), float(len(scored))),
        }
        return StepReport(metrics, outcome, samples)

    @torch.no_grad()
    def divergence(self, scored: Sequence[Scored]) -> Mean:
        """Exact reverse KL to the teacher over this rank's response tokens, nats. Nothing is trained.

        Raises TypeError for payloads other than hidden states: what they give is no exact divergence.
        """
        _require_hidden(scored, "the exact divergence")
        rollouts = self._on_device(scored)
        total, num_tokens = 0.0, 0

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            nonlocal total, num_tokens
            result = self._objective(batch, hidden, head, rollouts, 1.0)
            total += float(result.kl.sum())
            num_tokens += len(batch.tokens)
            return result.loss

        for _ in self._forward_all(rollouts, loss):
            pass
        return Mean(total, float(num_tokens))

    @torch.no_grad()
    def text_loss(self, texts: Sequence[Scored]) -> Mean:
        """The text term of `step` over this rank's texts, nats, its coefficient left out. Nothing is trained."""
        if self._settings.text_kd_ratio > 0:
            _require_hidden(texts, "objective.text_kd_ratio above 0")
        text = self._on_device(texts)

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            return self._text_loss(batch, hidden, head, text, 1.0)

        total = sum(float(value) for value in self._forward_all(text, loss)) / self._settings.lm_coef
        return Mean(total, float(sum(len(batch.tokens) for batch in text.micro_batches)))

    def _forward_all(self, scored: ScoredBatch, loss: Loss) -> Iterator[Tensor]:
        """`loss` of each micro-batch. Every rank goes as often through the student as the one with the most."""
        batches = scored.micro_batches
        for number in range(int(self.trainer.rank.max([float(len(batches))])[0])):
            yield self.trainer.forward(batches[number] if number < len(batches) else None, loss)

    @property
    def _is_probed(self) -> bool:
        return self._probe_every is not None and self.trainer.num_steps % self._probe_every == 0

    def _on_device(self, scored: Sequence[Scored]) -> ScoredBatch:
        return scored_batch(scored, micro_batch_tokens=self._micro_batch_tokens, device=self.trainer.rank.device)

    def _objective(
        self, batch: MicroBatch, hidden: Tensor, head: Head, rollouts: ScoredBatch, normalizer: float
    ) -> MiniLLMResult:
        return minillm_loss(*self._inputs(batch, hidden, head, rollouts), normalizer=normalizer)

    def _inputs(self, batch: MicroBatch, hidden: Tensor, head: Head, rollouts: ScoredBatch) -> Inputs:
        """What the objective and its probe both take, in their order."""
        teacher = rollouts.teacher(batch)
        return (
            hidden,
            head,
            teacher,
            self._teacher_head if isinstance(teacher, Tensor) else None,
            batch.tokens,
            batch.cu_seqlens,
            rollouts.sampler(batch),
            rollouts.behavior(batch),
            self._settings,
        )

    def _text_loss(self, batch: MicroBatch, hidden: Tensor, head: Head, text: ScoredBatch, normalizer: float) -> Tensor:
        with_teacher = self._settings.text_kd_ratio > 0
        return text_loss(
            hidden,
            head,
            batch.tokens,
            teacher_hidden=text.teacher(batch) if with_teacher else None,
            teacher_head=self._teacher_head if with_teacher else None,
            kd_ratio=self._settings.text_kd_ratio,
            coef=self._settings.lm_coef,
            normalizer=normalizer,
            logits_memory_mb=self._settings.logits_memory_mb,
        ).loss

    def _probe(self, batch: MicroBatch, hidden: Tensor, head: Head, rollouts: ScoredBatch) -> dict[str, Reduction]:
        gradients = term_gradients(*self._inputs(batch, hidden.detach(), head, rollouts))
        ratio = signal_to_noise(gradients.long_term, batch.cu_seqlens)
        return {"objective/long_term_gradient_snr/probe": Mean(ratio, 1.0)} if ratio == ratio else {}


def _require_hidden(scored: Sequence[Scored], purpose: str) -> None:
    for _, payload in scored:
        if not isinstance(payload, HiddenPayload):
            raise TypeError(
                f"{purpose} needs hidden states of the teacher, but a payload is a {type(payload).__name__}"
            )


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
