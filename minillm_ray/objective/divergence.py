"""The single-step half at the rows of a tile: KL(q || p), and the logit gradient of it and of the long-term half.

    g_v = q_v (c (l_v - KL) - b) + b [v = y],   l = log q - log p,   c single-step weight,   b = dJ / dlog q(y)

How it is made depends on what is known of p: here its logits, which are in memory beside the student's; elsewhere its
top k (`topk_divergence`) or log p(y) alone (`sampled_divergence`). The walk knows the protocol, and no teacher.
"""

from typing import Protocol

import torch
from torch import Tensor

from minillm_ray.objective.result import TopKAgreement
from minillm_ray.objective.terms import TokenStatistics
from minillm_ray.objective.workspace import Tile, Workspace, pick


class Divergence(Protocol):
    """What the walk asks at each tile: first `visit`, then, if there is a gradient to make, `logit_gradient`."""

    def visit(self, space: Workspace, tile: Tile, stats: TokenStatistics) -> None:
        """Write the statistics of the tile's tokens. Of its buffers there is left what `logit_gradient` reads."""

    def logit_gradient(self, tile: Tile, stats: TokenStatistics, step: Tensor, slope: Tensor) -> None:
        """q (step (l - KL) - slope) + slope [v = y], float [n, V] into `tile.student`, finished.

        step, slope  float [n]: c and b, times d softmax argument / d raw logit over the normaliser.
        """

    @property
    def agreement(self) -> TopKAgreement | None:
        """How far the teacher's top k covers both models, once every token was visited. None without a top k."""


class ExactDivergence:
    """From the logits of both models: KL over the whole vocabulary."""

    agreement: TopKAgreement | None = None

    def visit(self, space: Workspace, tile: Tile, stats: TokenStatistics) -> None:
        """Of the tile's raw logits there is left q (scratch) and q l (teacher)."""
        log_q, log_p, probability = tile.student, tile.teacher, tile.scratch
        space.log_softmax_(tile)
        pick(log_q, tile.tokens, out=stats.student_logprob)
        pick(log_p, tile.tokens, out=stats.teacher_logprob)
        if stats.forward_kl is not None:
            torch.softmax(log_p, dim=-1, out=probability)
            stats.forward_kl.copy_(torch.linalg.vecdot(probability, log_p) - torch.linalg.vecdot(probability, log_q))
        # The softmax of log q is q; its kernel is faster than exp on a CPU, and its rows sum to 1.
        torch.softmax(log_q, dim=-1, out=probability)
        weighted_ratio = torch.sub(log_q, log_p, out=log_p).mul_(probability)
        torch.sum(weighted_ratio, dim=-1, out=stats.kl)
        torch.sum(log_q.mul_(probability), dim=-1, out=stats.entropy).neg_()

    def logit_gradient(self, tile: Tile, stats: TokenStatistics, step: Tensor, slope: Tensor) -> None:
        """As in the protocol."""
        offset = tile.scratch.mul_(-(step * stats.kl + slope).unsqueeze(1))
        torch.addcmul(offset, tile.teacher, step.unsqueeze(1), out=tile.student)
        tile.student.scatter_add_(1, tile.tokens.unsqueeze(1), slope.unsqueeze(1))
        tile.finish_gradient()
