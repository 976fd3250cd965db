"""Corrections for tokens that were not drawn from the current student: log w = log(q_b / m), log omega = log(q / q_b).

All are detached and kept as logs. p teacher, q student, q_b student that drew the token, m the mixture that drew it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective.layout import Layout


def mixture_log_weight(sampler_logprob: Tensor, teacher_logprob: Tensor, *, alpha: float) -> Tensor:
    """log w = log(q_b / m) of each sampled token, where m = alpha * p + (1 - alpha) * q_b drew it.

    Source: MiniLLM (arXiv 2306.08543), eq. 7: this token's ratio, not the product over the prefix. That is
    an approximation; the unbiased form is `prefix_log_weight`.

    sampler_logprob  float [N], nats. log q_b(y), from the version that drew this very token.
    teacher_logprob  float [N], nats. log p(y), at the same temperature.
    alpha            The teacher's share of the draw, 0 <= alpha <= 1.

    Returns float [N], nats, detached: at most -log(1 - alpha), 0 everywhere when alpha is 0, log(q_b / p) when it is 1.
    Raises ValueError if the shapes differ or alpha is out of range.
    """
    if sampler_logprob.shape != teacher_logprob.shape:
        raise ValueError(
            f"sampler_logprob has shape {list(sampler_logprob.shape)}, teacher_logprob {list(teacher_logprob.shape)}; "
            "both hold one entry for each token"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"objective.alpha is {alpha}; expected 0 <= alpha <= 1, the teacher's share of the draw")
    log_alpha = math.log(alpha) if alpha > 0.0 else -math.inf
    log_rest = math.log1p(-alpha) if alpha < 1.0 else -math.inf
    log_mixture = torch.logaddexp(sampler_logprob + log_rest, teacher_logprob + log_alpha)
    return (sampler_logprob - log_mixture).detach()


def prefix_log_weight(log_ratio: Tensor, layout: Layout, *, inclusive: bool) -> Tensor:
    """log W of each token: the sum of log(q/m) over its sequence's slots 0..t (inclusive) or 0..t-1, float [N].

    An empty product is 1. Summed sequence by sequence with the doubling of `returns`, mirrored.
    """
    total = log_ratio.clone()
    reach = 1
    while reach < total.numel():
        follows = layout.sequence[reach:] == layout.sequence[:-reach]
        total[reach:] += torch.where(follows, total[:-reach].clone(), 0.0)
        reach *= 2
    if inclusive:
        return total
    shifted = torch.zeros_like(total)
    shifted[1:] = torch.where(layout.sequence[1:] == layout.sequence[:-1], total[:-1], 0.0)
    return shifted


@dataclass(frozen=True)
class Correction:
    """log w = log(q_b / m) and log omega = log(q / q_b) of each token, float [n], detached."""

    log_weight: Tensor
    log_ratio: Tensor

    @property
    def log_total(self) -> Tensor:
        """log(q / m): what turns an average over drawn tokens into one over the current student's."""
        return self.log_weight + self.log_ratio


@dataclass(frozen=True)
class Recorded:
    """What the sampler wrote down, in the dtype of the softmax. None: see `correction`."""

    sampler_logprob: Tensor | None
    behavior_logprob: Tensor | None
    alpha: float

    @property
    def on_policy(self) -> bool:
        """Nothing recorded: the current student drew every token itself, w = omega = 1."""
        return self.sampler_logprob is None and self.behavior_logprob is None

    @property
    def needs_teacher(self) -> bool:
        """log m was not recorded and has to be formed from alpha and the teacher's log p(y)."""
        return self.sampler_logprob is not None and self.behavior_logprob is None and self.alpha > 0

    def correction(self, rows: slice, student_logprob: Tensor, teacher_logprob: Tensor) -> Correction:
        """w and omega of the tokens `rows`.

        sampler_logprob None: the sampler held the current weights, q_b = q. behavior_logprob None: with
        sampler_logprob given, m = alpha p + (1 - alpha) q_b; with neither, no mixture.
        """
        zero = torch.zeros_like(student_logprob)
        if self.sampler_logprob is None:
            if self.behavior_logprob is None:
                return Correction(zero, zero)
            return Correction(student_logprob - self.behavior_logprob[rows], zero)
        sampler = self.sampler_logprob[rows]
        log_ratio = student_logprob - sampler
        if self.behavior_logprob is not None:
            return Correction(sampler - self.behavior_logprob[rows], log_ratio)
        return Correction(mixture_log_weight(sampler, teacher_logprob, alpha=self.alpha), log_ratio)
