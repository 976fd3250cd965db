"""How a model answers held-out prompts: Rouge-L, length, and the exact reverse KL to the teacher at every state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from minillm_ray.data.sets import PromptSet
from minillm_ray.remote import get
from minillm_ray.telemetry.reductions import Mean


@dataclass(frozen=True)
class HeldOutScores:
    """One row of the closing table. reverse_kl: nats a token, KL(q || p) on the model's own responses.

    rouge_l: None where no prompt has a reference.
    """

    reverse_kl: float
    rouge_l: float | None
    response_tokens: float
    truncated_fraction: float


@dataclass(frozen=True)
class HeldOutPrompts:
    """The prompts, one sampled response each. prompts: reference to the PromptSet; tokenizer: transformers' own."""

    prompts: Any
    num_prompts: int
    batch_size: int
    tokenizer: Any
    timeout_seconds: float

    def batches(self) -> list[list[int]]:
        """Indices of the prompts, a batch at a time."""
        return [
            list(range(start, min(start + self.batch_size, self.num_prompts)))
            for start in range(0, self.num_prompts, self.batch_size)
        ]

    def scores(self, trajectories: Sequence[Any], divergence: Mean) -> HeldOutScores:
        """trajectories: references, one a prompt; divergence: of their tokens."""
        rouge, tokens, truncated = get(
            _text_statistics.remote(list(trajectories), self.prompts, self.tokenizer, self.timeout_seconds),
            timeout_seconds=self.timeout_seconds,
            work="evaluation: Rouge-L",
        )
        return HeldOutScores(divergence.value, rouge, tokens, truncated)


@ray.remote(num_cpus=0)
def _text_statistics(
    trajectories: list[Any], prompts: PromptSet, tokenizer: Any, timeout_seconds: float
) -> tuple[float | None, float, float]:
    """Mean Rouge-L (None without references), mean response tokens, share of truncated responses."""
    from minillm_ray.evaluation.text_metrics import rouge_l

    fetched = ray.get(trajectories, timeout=timeout_seconds)
    texts = [tokenizer.decode(trajectory.response_ids, skip_special_tokens=True) for trajectory in fetched]
    references = [prompts.references[trajectory.prompt_index] for trajectory in fetched]
    with_reference = [(text, known) for text, known in zip(texts, references, strict=True) if known]
    scores = rouge_l([text for text, _ in with_reference], [known for _, known in with_reference])
    return (
        Mean(sum(scores), len(scores)).value if scores else None,
        Mean(sum(len(trajectory.response_ids) for trajectory in fetched), len(fetched)).value,
        Mean(sum(trajectory.truncated for trajectory in fetched), len(fetched)).value,
    )
