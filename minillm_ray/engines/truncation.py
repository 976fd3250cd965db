"""From logits to a token: temperature, then top-k, then top-p, renormalised after each; then a draw."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 128
"""Tokens of the vocabulary whose weights are summed in float32 before the running sum."""


def log_probabilities(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """float32 log-probabilities of logits [..., V]; minus infinity where truncation cuts, and where a logit is so.

    temperature  > 0
    top_k        The k likeliest tokens stay, and any that ties with the last of them. None or 0: all.
    top_p        Of those, the fewest likeliest tokens whose probabilities reach top_p, at least one; where equal ones
                 tie for the last place, the higher id stays. 1: all.

    The rules are those of transformers' and vLLM's samplers. Student and teacher both go through here.
    """
    scaled = logits.float()
    if temperature != 1.0:  # a pass over V
        scaled = scaled / temperature
    logprobs = scaled.log_softmax(-1)
    if top_k and top_k < logprobs.shape[-1]:
        least = logprobs.topk(top_k, dim=-1).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -math.inf).log_softmax(-1)
    if top_p < 1.0:
        ascending, order = logprobs.sort(dim=-1, stable=True)
        cut = ascending.exp().cumsum(-1) <= 1.0 - top_p
        cut[..., -1] = False
        logprobs = logprobs.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf).log_softmax(-1)
    return logprobs


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """A token from each distribution, int64 [B].

    weights   float32 [B, V], at least 0: a token's probability is its share of the sum. None of weight 0 is drawn.
    uniforms  float64 [B] in [0, 1): the token is the first at which the running sum exceeds this share.

    The running sum is made of blocks first and then within one of them, which spares a pass over V in float64.
    """
    lacking = -weights.shape[-1] % _BLOCK
    whole = pad(weights, (0, lacking)) if lacking else weights  # pad copies in any case
    blocks = whole.unflatten(-1, (-1, _BLOCK))
    before = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * before[:, -1:]
    block = _first_above(before, target)
    target = target - before.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    within = blocks.take_along_dim(block[..., None], dim=1)[:, 0].cumsum(-1, dtype=torch.float64)
    return (block * _BLOCK + _first_above(within, target))[:, 0]


def _first_above(running: Tensor, target: Tensor) -> Tensor:
    """int64 [B, 1]: the first place where the running sum [B, n] exceeds target [B, 1], which rounding may have put
    beyond the last."""
    last = running[:, -1:]
    return torch.searchsorted(running, torch.minimum(target, last.nextafter(torch.zeros_like(last))), right=True)
