"""Student and teacher over the same tokens, with transformers: hidden states, then what the heads make of them.

Batches are cut by padded tokens, so that memory does not depend on how many sequences there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm_ray.engines.model_folder import no_progress_bars
from minillm_ray.evaluation.calibration import predict
from minillm_ray.evaluation.divergence import divergence
from minillm_ray.evaluation.summary import ReferencePrediction, SequenceDivergence
from minillm_ray.learner.micro_batches import MicroBatch, collate, split_by_tokens
from minillm_ray.learner.student import Student, load_student
from minillm_ray.objective import Head


@dataclass(frozen=True)
class PromptedSequence:
    """int32 [P + n]: a prompt of P = prompt_length tokens and the response to it."""

    token_ids: np.ndarray
    prompt_length: int


@dataclass(frozen=True)
class ScoringSettings:
    """batch_tokens: padded tokens of one forward pass; temperature: that of every distribution, as sampled from."""

    vocabulary_size: int
    temperature: float
    batch_tokens: int


class TokenScorer:
    """The models stay loaded, on one device, as long as this object lives.

    on_scored  Called after each batch with the number of its sequences.
    """

    def __init__(self, model: str, teacher: str | None, settings: ScoringSettings, *, device: torch.device) -> None:
        def load(path: str) -> Student:
            return load_student(
                path,
                vocabulary_size=settings.vocabulary_size,
                dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
                device=device,
                gradient_checkpointing=False,
            )

        with no_progress_bars():
            self._model = load(model)
            self._teacher = None if teacher is None else load(teacher)
        self._settings = settings
        self._device = device
        self.on_scored: Callable[[int], None] = lambda num_sequences: None

    @property
    def has_teacher(self) -> bool:
        return self._teacher is not None

    def divergences(self, sequences: Sequence[PromptedSequence]) -> list[SequenceDivergence]:
        """Of the student from the teacher, at the states that predict each response. Needs a teacher."""
        assert self._teacher is not None
        teacher = self._teacher

        def score(batch: MicroBatch) -> list[Tensor]:
            found = divergence(
                *_hidden(self._model, batch),
                *_hidden(teacher, batch),
                batch.tokens,
                batch.cu_seqlens,
                temperature=self._settings.temperature,
            )
            return [found.reverse_kl, found.forward_kl]

        return [SequenceDivergence(reverse, forward) for reverse, forward in self._each(sequences, score)]

    def predictions(self, sequences: Sequence[PromptedSequence], *, of_teacher: bool) -> list[ReferencePrediction]:
        """What the student, or the teacher, makes of the responses' tokens."""
        model = self._teacher if of_teacher else self._model
        assert model is not None

        def score(batch: MicroBatch) -> list[Tensor]:
            found = predict(*_hidden(model, batch), batch.tokens, temperature=self._settings.temperature)
            return [found.nll, found.confidence, found.correct]

        return [ReferencePrediction(*parts) for parts in self._each(sequences, score)]

    @torch.no_grad()
    def _each(
        self, sequences: Sequence[PromptedSequence], score: Callable[[MicroBatch], list[Tensor]]
    ) -> list[list[np.ndarray]]:
        """For each sequence, in order, the tensors [N] that `score` makes of a batch, cut to its own n tokens."""
        token_ids = [sequence.token_ids for sequence in sequences]
        prompt_lengths = [sequence.prompt_length for sequence in sequences]
        found: dict[int, list[np.ndarray]] = {}
        for members in split_by_tokens([len(ids) for ids in token_ids], self._settings.batch_tokens):
            batch = collate(token_ids, prompt_lengths, members).to(self._device)
            lengths = batch.cu_seqlens.diff().tolist()
            columns = [tensor.cpu().split(lengths) for tensor in score(batch)]
            for position, member in enumerate(members):
                found[member] = [column[position].numpy() for column in columns]
            self.on_scored(len(members))
        return [found[number] for number in range(len(sequences))]


def _hidden(model: Student, batch: MicroBatch) -> tuple[Tensor, Head]:
    """Final hidden states [N, d] at the states that predict the batch's tokens, and the model's head."""
    return model(batch.input_ids, batch.slots, lambda hidden, head: (hidden, head))
