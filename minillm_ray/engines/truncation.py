"""From logits to a token: temperature, then top-k, then top-p, renormalised after each; then a draw."""

import math

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """float32 log-probabilities of logits [..., V]; minus infinity where truncation cuts, and where a logit is so.

    temperature  > 0
    top_k        The k likeliest tokens stay, and any that ties with the last of them. None or 0: all.
    top_p        Of those, the fewest likeliest tokens whose probabilities reach top_p, at least one; where equal ones
                 tie for the last place, the higher id stays. 1: all.

    The rules are those of transformers' and vLLM's samplers. Student and teacher both go through here.
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    if top_k and top_k < logprobs.shape[-1]:
        least = logprobs.topk(top_k, dim=-1).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -math.inf).log_softmax(-1)
    if top_p < 1.0:
        ascending, order = logprobs.sort(dim=-1, stable=True)
        cut = ascending.exp().cumsum(-1) <= 1.0 - top_p
        cut[..., -1] = False
        logprobs = logprobs.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf).log_softmax(-1)
    return logprobs


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """int64 [B]: a token from each distribution [B, V], by its uniform in [0, 1). None of probability 0 is drawn."""
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = total.nextafter(torch.zeros_like(total))
    return torch.searchsorted(cumulative, torch.minimum(uniforms[:, None] * total, below_total), right=True)[:, 0]
