"""The single-step half from the teacher's top k: KL of k + 1 buckets, the last of them the rest of the vocabulary.

    KL = sum_i q_i l_i + q_tail l_tail,   l_i = log q_i - log p_i,   l_tail = log q_tail - log p_tail

Its logit gradient is q_v (l_v - KL) with l_v = l_tail for every v outside the k: one pass over V, then k corrections.
There is no teacher product, and nothing of the teacher is V wide.
"""

import torch
from torch import Tensor

from minillm_ray.objective.result import TopKAgreement
from minillm_ray.objective.teachers import TopKTeacher
from minillm_ray.objective.terms import TokenStatistics
from minillm_ray.objective.workspace import Tile, Workspace, pick


class TopKDivergence:
    """`Divergence` from a TopKTeacher. Holds the student's tail mass and the overlap of each token visited."""

    def __init__(self, teacher: TopKTeacher, dtype: torch.dtype) -> None:
        self._ids = teacher.ids
        self._log_p = teacher.logprob.detach().to(dtype)
        self._log_p_tail = teacher.tail_logprob.detach().to(dtype)
        self._log_p_token = teacher.token_logprob.detach().to(dtype)
        self._q_tail = torch.zeros_like(self._log_p_tail)
        self._overlap = torch.zeros_like(self._log_p_tail)

    @property
    def agreement(self) -> TopKAgreement:
        """The student's and the teacher's mass on the k ids, and the share of the student's own top k among them."""
        return TopKAgreement(1.0 - self._q_tail, self._log_p.exp().sum(1), self._overlap)

    def visit(self, space: Workspace, tile: Tile, stats: TokenStatistics) -> None:
        """Of the tile's buffers there is left log q (student) and q (scratch)."""
        log_q, probability = tile.student, tile.scratch
        ids, log_p = self._ids[tile.rows], self._log_p[tile.rows]
        space.log_softmax_(tile)
        pick(log_q, tile.tokens, out=stats.student_logprob)
        stats.teacher_logprob.copy_(self._log_p_token[tile.rows])
        torch.softmax(log_q, dim=-1, out=probability)
        stats.entropy.copy_(torch.linalg.vecdot(probability, log_q)).neg_()
        q = probability.gather(1, ids)
        # Summed without the k: 1 minus their sum would be rounding where they hold nearly everything.
        q_tail = probability.scatter_(1, ids, 0.0).sum(1)
        probability.scatter_(1, ids, q)
        self._q_tail[tile.rows] = q_tail
        ratio, tail_ratio = self._log_ratios(tile)
        stats.kl.copy_(torch.linalg.vecdot(q, ratio) + q_tail * tail_ratio)
        if stats.forward_kl is not None:
            p_tail = self._log_p_tail[tile.rows].exp()
            stats.forward_kl.copy_(-torch.linalg.vecdot(log_p.exp(), ratio) - p_tail * tail_ratio)
        # An id is in the student's top k where its log q is not below the k-th largest.
        smallest = log_q.topk(ids.shape[1], dim=1, sorted=False).values.amin(1, keepdim=True)
        self._overlap[tile.rows] = (log_q.gather(1, ids) >= smallest).to(log_q.dtype).mean(1)

    def logit_gradient(self, tile: Tile, stats: TokenStatistics, step: Tensor, slope: Tensor) -> None:
        """As in the protocol."""
        ids = self._ids[tile.rows]
        ratio, tail_ratio = self._log_ratios(tile)
        correction = step.unsqueeze(1) * tile.scratch.gather(1, ids) * (ratio - tail_ratio.unsqueeze(1))
        everywhere = step * (tail_ratio - stats.kl) - slope
        torch.mul(tile.scratch, everywhere.unsqueeze(1), out=tile.student)
        tile.student.scatter_add_(1, ids, correction)
        tile.student.scatter_add_(1, tile.tokens.unsqueeze(1), slope.unsqueeze(1))
        tile.finish_gradient()

    def _log_ratios(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """l_i [n, k] and l_tail [n] from log q in `student`. A bucket without any q counts for nothing: 0, not nan."""
        q_tail = self._q_tail[tile.rows]
        tail_ratio = torch.where(q_tail > 0, q_tail.log() - self._log_p_tail[tile.rows], 0.0)
        return tile.student.gather(1, self._ids[tile.rows]) - self._log_p[tile.rows], tail_ratio
