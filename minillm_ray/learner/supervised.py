"""Supervised fine-tuning: cross-entropy of the response tokens, padding and prompt left out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm_ray.data.sets import SupervisedSet
from minillm_ray.learner.micro_batches import MicroBatch, collate, split_by_tokens
from minillm_ray.learner.trainer import StepOutcome, StudentTrainer
from minillm_ray.objective import Head, text_loss


class SupervisedLearner:
    """Trains on one set and measures on another. Rows are split over ranks; the result does not depend on how."""

    def __init__(
        self,
        trainer: StudentTrainer,
        *,
        train: SupervisedSet,
        validation: SupervisedSet,
        micro_batch_tokens: int,
        logits_memory_mb: int,
    ) -> None:
        self.trainer = trainer
        self._train = train
        self._validation = validation
        self._micro_batch_tokens = micro_batch_tokens
        self._logits_memory_mb = logits_memory_mb

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]:
        """One optimizer step on `rows` of the training set, all ranks together. Returns the loss in nats a token."""
        rank = self.trainer.rank
        batches = self._micro_batches(self._train, rows[rank.index :: rank.size])
        num_tokens = rank.sum([float(sum(len(batch.tokens) for batch in batches))])[0]
        total = 0.0

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            nonlocal total
            value = text_loss(
                hidden, head, batch.tokens, normalizer=num_tokens, logits_memory_mb=self._logits_memory_mb
            ).loss
            total += float(value.detach())
            return value

        outcome = self.trainer.step(batches, loss)
        return rank.sum([total])[0], outcome

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean cross-entropy of the validation set's response tokens, nats."""
        rank = self.trainer.rank
        rows = list(range(rank.index, len(self._validation), rank.size))
        batches = self._micro_batches(self._validation, rows)
        total, num_tokens = 0.0, 0

        def loss(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
            return text_loss(hidden, head, batch.tokens, normalizer=1.0, logits_memory_mb=self._logits_memory_mb).loss

        for number in range(int(rank.max([float(len(batches))])[0])):
            batch = batches[number] if number < len(batches) else None
            total += float(self.trainer.forward(batch, loss))
            num_tokens += 0 if batch is None else len(batch.tokens)
        total, count = rank.sum([total, float(num_tokens)])
        return total / count

    def _micro_batches(self, data: SupervisedSet, rows: Sequence[int]) -> list[MicroBatch]:
        examples = [data.example(int(row)) for row in rows]
        sequences = [token_ids for token_ids, _ in examples]
        prompt_lengths = [prompt_length for _, prompt_length in examples]
        groups = split_by_tokens([len(sequence) for sequence in sequences], self._micro_batch_tokens)
        device = self.trainer.rank.device
        return [collate(sequences, prompt_lengths, group).to(device) for group in groups]
