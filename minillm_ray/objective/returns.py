"""From per-token rewards to the return that multiplies grad log q(y_t).

    C_t = r_t + gamma C_{t+1},  C_n = 0
    A_t = gamma C_{t+1} (return_start next) or C_t (current), divided by a count of slots (return_norm)

A return needs later tokens only, so it can be formed while a batch is walked from its end to its start. `advance` does
that for one run of tokens; called once for all tokens it is the plain return.
"""

import torch
from torch import Tensor

from minillm_ray.objective.layout import Layout
from minillm_ray.objective.settings import ObjectiveSettings

WHITEN_EPS = 1e-8


def sampled_reward(student_logprob: Tensor, teacher_logprob: Tensor) -> Tensor:
    """r_t = log p(y_t) - log q(y_t), float [N], nats. Its mean under q is -KL_t, the expected reward."""
    return teacher_logprob - student_logprob


def scaled_reward(reward: Tensor, settings: ObjectiveSettings) -> Tensor:
    """reward / reward_scale, then bounded by reward_clip."""
    if settings.reward_scale != 1.0:
        reward = reward / settings.reward_scale
    return reward if settings.reward_clip is None else reward.clamp(-settings.reward_clip, settings.reward_clip)


def inverse_count(layout: Layout, settings: ObjectiveSettings, dtype: torch.dtype) -> Tensor | None:
    """1 / (what slot t's return is divided by), float [N]; 0 where that count is 0; None for return_norm=none.

    Source: MiniLLM, R^Norm after eq. 3: 1/(T-t-1), the number of later slots (`later`).
    """
    if settings.return_norm == "none":
        return None
    if settings.return_norm == "horizon":
        count = (settings.horizon or 0) - layout.position - 1
    else:
        count = layout.length - layout.position - (1 if settings.return_norm == "later" else 0)
    return torch.where(count > 0, 1.0 / count.clamp(min=1).to(dtype), 0.0)


class ReturnWalk:
    """Returns of a packed batch, made run by run from the last token to the first.

    Holds C for every token already visited; the run that comes next continues from its right neighbour.
    """

    def __init__(self, layout: Layout, settings: ObjectiveSettings, dtype: torch.dtype) -> None:
        device = layout.sequence.device
        self._gamma = settings.gamma
        self._from_next = settings.return_start == "next"
        self._inverse_count = inverse_count(layout, settings, dtype)
        # One slot past the end belongs to no sequence: the last token's return is cut off there.
        self._sequence = torch.cat([layout.sequence, torch.full((1,), -1, device=device)])
        self._to_go = torch.zeros(layout.num_tokens + 1, dtype=dtype, device=device)

    def advance(self, start: int, end: int, reward: Tensor) -> Tensor:
        """A of tokens start..end-1, float [end - start], from their rewards. Runs must arrive from last to first."""
        sequence = self._sequence[start : end + 1]
        to_go = self._to_go[start : end + 1]
        to_go[:-1] = reward
        _discounted_suffix_sum(to_go, sequence, self._gamma)
        if self._from_next:
            advantage = torch.where(sequence[1:] == sequence[:-1], self._gamma * to_go[1:], 0.0)
        else:
            advantage = to_go[:-1].clone()
        return advantage if self._inverse_count is None else advantage * self._inverse_count[start:end]


def _discounted_suffix_sum(values: Tensor, sequence: Tensor, gamma: float) -> None:
    """In place: values[i] = sum over j >= i in i's sequence of gamma^(j-i) values[j]. The last entry is final already.

    Doubling: after step k an entry holds its first 2^k terms. Distances are counted from i, so gamma^T never underflows
    into a division, and one sequence's numbers are never subtracted from another's.
    """
    reach = 1
    while reach < values.numel():
        follows = sequence[reach:] == sequence[:-reach]
        values[:-reach] += torch.where(follows, gamma**reach * values[reach:], 0.0)
        reach *= 2


def whitened(advantage: Tensor, layout: Layout, settings: ObjectiveSettings) -> Tensor:
    """(A - mean) / sqrt(variance + 1e-8), biased variance. `all_slots` adds zeros up to the horizon.

    The statistics are this call's: whitening makes the loss depend on how a batch is cut (as in the official code).
    """
    if settings.whiten == "none" or layout.num_tokens == 0:
        return advantage
    count = layout.num_tokens if settings.whiten == "valid" else layout.num_sequences * (settings.horizon or 0)
    mean = advantage.sum() / count
    squares = (advantage - mean).square().sum() + (count - layout.num_tokens) * mean.square()
    return (advantage - mean) * torch.rsqrt(squares / count + WHITEN_EPS)
