"""The mixture by its definition: both models decode side by side, one token at a time, from the average of their two
softmaxes. It shares nothing with the package; temperature, top-k and top-p are transformers' own.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class LockStepResponses:
    """B responses. lengths [B]; token_ids, sampler_logprob, behavior_logprob [B, T], meaningless beyond a length."""

    token_ids: Tensor
    lengths: Tensor
    sampler_logprob: Tensor
    behavior_logprob: Tensor
    truncated: Tensor


@torch.no_grad()
def lock_step(
    student: Any,
    teacher: Any,
    prompts: Tensor,
    *,
    alpha: float,
    max_response_tokens: int,
    stop_token_ids: Collection[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> LockStepResponses:
    """A response to each prompt of int64 [B, P], equally long ones."""
    caches = {"student": DynamicCache(), "teacher": DynamicCache()}
    stops = torch.tensor(sorted(stop_token_ids))
    fed = prompts
    lengths = torch.zeros(len(prompts), dtype=torch.int64)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_response_tokens):
        student_logits = student(fed, past_key_values=caches["student"], use_cache=True).logits[:, -1]
        teacher_logits = teacher(fed, past_key_values=caches["teacher"], use_cache=True).logits[:, -1]
        whole = (student_logits.double() / temperature).log_softmax(-1)
        q, p = (
            sampled_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            for logits in (student_logits, teacher_logits)
        )
        mixture = alpha * p + (1.0 - alpha) * q
        token = torch.multinomial(mixture, 1, generator=generator)
        columns.append((token, whole.gather(1, token), mixture.gather(1, token).log()))
        lengths += ~ended
        ended |= torch.isin(token[:, 0], stops)
        if ended.all():
            break
        fed = token
    token_ids, sampler_logprob, behavior_logprob = (torch.cat(column, dim=1) for column in zip(*columns, strict=True))
    return LockStepResponses(token_ids, lengths, sampler_logprob, behavior_logprob, ~ended)


def sampled_distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """float64 probabilities of logits [B, V], by transformers' own truncation."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    nothing = torch.empty(len(logits), 0, dtype=torch.int64)
    return warpers(nothing, logits.double()).softmax(-1)
