"""What a token's log-probabilities become under the settings: its reward, its weights, its loss.

One set of formulas for a run of tokens. The walk uses them on the tile in memory, `assemble` on the whole batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm_ray.objective.layout import Layout
from minillm_ray.objective.longterm import LongTerm, long_term
from minillm_ray.objective.returns import ReturnWalk, sampled_reward, scaled_reward, whitened
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.weights import Correction, Recorded, prefix_log_weight


@dataclass(frozen=True)
class TokenStatistics:
    """Of each packed token, float [N], nats, detached: KL(q || p) at its state, log q(y), log p(y), entropy of q.

    forward_kl is KL(p || q), or None where it was not asked for.
    """

    kl: Tensor
    student_logprob: Tensor
    teacher_logprob: Tensor
    entropy: Tensor
    forward_kl: Tensor | None = None

    def rows(self, rows: slice) -> "TokenStatistics":
        forward_kl = None if self.forward_kl is None else self.forward_kl[rows]
        return TokenStatistics(
            self.kl[rows], self.student_logprob[rows], self.teacher_logprob[rows], self.entropy[rows], forward_kl
        )


@dataclass(frozen=True)
class Prefix:
    """Products of current ratios q/m over a sequence's slots 0..t-1 (`before`) and 0..t (`through`), float [N]."""

    before: Tensor
    through: Tensor


@dataclass(frozen=True)
class Terms:
    """The settings applied to one packed batch. `prefix` is there when a weight is a product."""

    settings: ObjectiveSettings
    layout: Layout
    recorded: Recorded
    prefix: Prefix | None = None

    @property
    def needs_prefix(self) -> bool:
        """Products of current ratios are asked for and are not all 1: log q of earlier tokens must be known first."""
        products = self.settings.single_step_weight == "prefix" or self.settings.long_term_weight == "product"
        return products and not self.recorded.on_policy

    @property
    def needs_returns(self) -> bool:
        """Whitening shifts by a statistic of all returns: they must be known before the first gradient."""
        return self.settings.whiten != "none"

    def knowing(self, stats: TokenStatistics) -> "Terms":
        """The same terms with the products of q/m, if they need them."""
        if not self.needs_prefix:
            return self
        correction = self.correction(slice(None), stats)
        before = prefix_log_weight(correction.log_total, self.layout, inclusive=False).exp()
        through = prefix_log_weight(correction.log_total, self.layout, inclusive=True).exp()
        return replace(self, prefix=Prefix(before, through))

    def correction(self, rows: slice, stats: TokenStatistics) -> Correction:
        return self.recorded.correction(rows, stats.student_logprob, stats.teacher_logprob)

    def reward(self, rows: slice, stats: TokenStatistics) -> Tensor:
        """What each token adds to the returns of earlier ones, float [n], scaled, clipped and, if asked for, weighted.

        An expected reward is corrected for its state (products before t), a sampled one for its token too.
        """
        kind = self.settings.later_reward
        if kind == "expected":
            reward = -stats.kl
        elif kind == "sampled_frozen" and self.recorded.sampler_logprob is not None:
            reward = sampled_reward(self.recorded.sampler_logprob[rows], stats.teacher_logprob)
        else:
            reward = sampled_reward(stats.student_logprob, stats.teacher_logprob)
        reward = scaled_reward(reward, self.settings)
        if self.settings.long_term_weight != "product" or self.prefix is None:
            return reward
        return reward * (self.prefix.before if kind == "expected" else self.prefix.through)[rows]

    def single_step_weight(self, rows: slice, correction: Correction) -> Tensor:
        """c_t, the weight on KL_t, float [n]."""
        if not self.settings.single_step:
            return torch.zeros_like(correction.log_weight)
        kind = self.settings.single_step_weight
        if kind == "token":
            return correction.log_weight.exp()
        if kind == "prefix" and self.prefix is not None:
            return self.prefix.before[rows]
        return torch.ones_like(correction.log_weight)

    def long_term(self, advantage: Tensor, correction: Correction) -> LongTerm:
        return long_term(advantage, correction, self.settings)

    def advantage(self, stats: TokenStatistics) -> Tensor:
        """A of every token, float [N], whitened if asked for."""
        walk = ReturnWalk(self.layout, self.settings, stats.kl.dtype)
        plain = walk.advance(0, self.layout.num_tokens, self.reward(slice(None), stats))
        return whitened(plain, self.layout, self.settings)
