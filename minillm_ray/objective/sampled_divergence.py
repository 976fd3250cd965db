"""The single-step half from log p(y) alone: the score-function estimate of `SampledTeacher`, and k3 for the KL itself.

g_v = b ([v = y] - q_v),   b = b_long + c (q / m) l_y,   l_y = log q(y) - log p(y)
"""

import torch
from torch import Tensor

from minillm_ray.objective.result import TopKAgreement
from minillm_ray.objective.teachers import SampledTeacher
from minillm_ray.objective.terms import TokenStatistics
from minillm_ray.objective.weights import Recorded
from minillm_ray.objective.workspace import Tile, Workspace, pick


class SampledDivergence:
    """`Divergence` from a SampledTeacher. recorded: what the sampler wrote down, for q / m of each token."""

    agreement: TopKAgreement | None = None

    def __init__(self, teacher: SampledTeacher, recorded: Recorded, dtype: torch.dtype) -> None:
        self._log_p = teacher.logprob.detach().to(dtype)
        self._recorded = recorded

    def visit(self, space: Workspace, tile: Tile, stats: TokenStatistics) -> None:
        """Of the tile's buffers there is left q (scratch)."""
        log_q, probability = tile.student, tile.scratch
        space.log_softmax_(tile)
        pick(log_q, tile.tokens, out=stats.student_logprob)
        stats.teacher_logprob.copy_(self._log_p[tile.rows])
        torch.softmax(log_q, dim=-1, out=probability)
        stats.entropy.copy_(torch.linalg.vecdot(probability, log_q)).neg_()
        # (q / m) (e^d - 1 - d) with q / m drawn in: e^d alone overflows where the student finds y impossible.
        difference = stats.teacher_logprob - stats.student_logprob
        log_total = self._log_total(tile, stats)
        k3 = (log_total + difference).exp() - log_total.exp() * (1.0 + difference)
        stats.kl.copy_(k3.clamp(min=0.0))

    def logit_gradient(self, tile: Tile, stats: TokenStatistics, step: Tensor, slope: Tensor) -> None:
        """As in the protocol, with step's part in the sampled token's slope."""
        score = self._log_total(tile, stats).exp() * (stats.student_logprob - stats.teacher_logprob)
        slope = slope + step * score
        torch.mul(tile.scratch, -slope.unsqueeze(1), out=tile.student)
        tile.student.scatter_add_(1, tile.tokens.unsqueeze(1), slope.unsqueeze(1))
        tile.finish_gradient()

    def _log_total(self, tile: Tile, stats: TokenStatistics) -> Tensor:
        """log(q / m) of the tile's tokens, float [n]."""
        return self._recorded.correction(tile.rows, stats.student_logprob, stats.teacher_logprob).log_total
