"""How a model answers held-out prompts: Rouge-L, length, and the exact reverse KL to the teacher at every state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from minillm_ray.data.sets import PromptSet
from minillm_ray.remote import get
from minillm_ray.telemetry.reductions import Mean


@dataclass(frozen=True)
class HeldOutScores:
    """One row of the closing table. reverse_kl: nats a token, KL(q || p) on the model's own responses."""

    reverse_kl: float
    rouge_l: float
    response_tokens: float
    truncated_fraction: float


class Sampler(Protocol):
    """The samplers of the model that is measured."""

    def generate(self, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[Any]: ...


class Scorer(Protocol):
    """The teacher that it is measured against."""

    def score(self, trajectories: Sequence[Any]) -> tuple[list[Any], int]: ...


class DivergenceMeter(Protocol):
    """The learner that holds the model that is measured."""

    def divergence(self, trajectories: Sequence[Any], payloads: Sequence[Any]) -> Mean: ...


@dataclass(frozen=True)
class HeldOutEvaluation:
    """The prompts, one sampled response each. prompts: reference to the PromptSet; tokenizer: transformers' own."""

    prompts: Any
    num_prompts: int
    batch_size: int
    tokenizer: Any
    timeout_seconds: float

    def teacher(self, sampler: Sampler) -> HeldOutScores:
        """The teacher's own responses; its divergence to itself is 0."""
        references = [
            reference for batch in self._batches() for reference in sampler.generate("held_out", batch, draw=0)
        ]
        return self._scores(references, Mean(0.0, 1.0))

    def student(self, sampler: Sampler, scorer: Scorer, meter: DivergenceMeter) -> HeldOutScores:
        """The student's responses and its divergence to the teacher along them."""
        references: list[Any] = []
        parts: list[Mean] = []
        for batch in self._batches():
            trajectories = sampler.generate("held_out", batch, draw=0)
            payloads, _ = scorer.score(trajectories)
            parts.append(meter.divergence(trajectories, payloads))
            references += trajectories
        divergence = Mean(sum(part.sum for part in parts), sum(part.count for part in parts))
        return self._scores(references, divergence)

    def _batches(self) -> list[list[int]]:
        return [
            list(range(start, min(start + self.batch_size, self.num_prompts)))
            for start in range(0, self.num_prompts, self.batch_size)
        ]

    def _scores(self, trajectories: list[Any], divergence: Mean) -> HeldOutScores:
        rouge, tokens, truncated = get(
            _text_statistics.remote(trajectories, self.prompts, self.tokenizer, self.timeout_seconds),
            timeout_seconds=self.timeout_seconds,
            work="evaluation: Rouge-L",
        )
        return HeldOutScores(divergence.value, rouge, tokens, truncated)


@ray.remote(num_cpus=0)
def _text_statistics(
    trajectories: list[Any], prompts: PromptSet, tokenizer: Any, timeout_seconds: float
) -> tuple[float, float, float]:
    """Mean Rouge-L (nan without references), mean response tokens, share of truncated responses."""
    from minillm_ray.evaluation.text_metrics import rouge_l

    fetched = ray.get(trajectories, timeout=timeout_seconds)
    texts = [tokenizer.decode(trajectory.response_ids, skip_special_tokens=True) for trajectory in fetched]
    references = [prompts.references[trajectory.prompt_index] for trajectory in fetched]
    with_reference = [(text, known) for text, known in zip(texts, references, strict=True) if known]
    scores = rouge_l([text for text, _ in with_reference], [known for _, known in with_reference])
    return (
        Mean(sum(scores), len(scores)).value,
        Mean(sum(len(trajectory.response_ids) for trajectory in fetched), len(fetched)).value,
        Mean(sum(trajectory.truncated for trajectory in fetched), len(fetched)).value,
    )
