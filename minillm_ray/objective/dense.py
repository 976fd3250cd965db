"""The oracle: the objective written down as in the paper, on dense [N, V] logits, differentiated by autograd.

Slow and large on purpose. It shares the checks and the settings with the walk, and none of its formulas: returns are a
matrix of discounts times the rewards, weights are ratios of probabilities, the clip is PPO's max.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from minillm_ray.objective.batch import Batch, check_batch
from minillm_ray.objective.dense_divergence import (
    DenseDivergence,
    dense_divergence,
    dense_log_softmax,
    token_probabilities,
)
from minillm_ray.objective.head import Head
from minillm_ray.objective.result import MiniLLMResult
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.teachers import TeacherArgument
from minillm_ray.objective.text import TextResult, check_text


def minillm_loss_dense(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    teacher_hidden: TeacherArgument,
    teacher_head: Head | Tensor | None,
    tokens: Tensor,
    cu_seqlens: Tensor,
    sampler_logprob: Tensor | None,
    behavior_logprob: Tensor | None,
    settings: ObjectiveSettings,
    normalizer: float | None = None,
    *,
    forward_kl: bool = False,
) -> MiniLLMResult:
    """Loss, gradients and per-token numbers of `minillm_loss`, from the definition. Same arguments, same errors."""
    batch = check_batch(
        student_hidden, student_head, teacher_hidden, teacher_head, tokens, cu_seqlens,
        sampler_logprob, behavior_logprob, settings, normalizer, forward_kl=forward_kl,
    )  # fmt: skip
    with torch.autocast(batch.tokens.device.type, enabled=False):
        options = {"vocab_size": batch.vocab_size, "temperature": settings.temperature, "dtype": batch.dtype}
        log_q = dense_log_softmax(batch.student_hidden, batch.student_head, **options)
        return _loss(log_q, dense_divergence(log_q, batch, forward_kl=forward_kl), cu_seqlens.tolist(), batch)


def text_loss_dense(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    tokens: Tensor,
    *,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | Tensor | None = None,
    kd_ratio: float = 0.0,
    coef: float = 1.0,
    normalizer: float | None = None,
) -> TextResult:
    """`text_loss` from its definition. Same arguments (it needs no memory limit), same errors."""
    batch = check_text(
        student_hidden,
        student_head,
        tokens,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        kd_ratio=kd_ratio,
        coef=coef,
        normalizer=normalizer,
    )
    options = {"vocab_size": batch.vocab_size, "temperature": 1.0, "dtype": batch.dtype}
    with torch.autocast(tokens.device.type, enabled=False):
        log_q = dense_log_softmax(batch.student_hidden, batch.student_head, **options)
    nll = functional.nll_loss(log_q, batch.tokens, reduction="none")
    if batch.teacher_hidden is None or batch.teacher_head is None:
        return TextResult(coef * nll.sum() / batch.normalizer, nll.detach(), None)
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        log_p = dense_log_softmax(batch.teacher_hidden, batch.teacher_head, **options)
    kl = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    mixed = (1 - kd_ratio) * nll + kd_ratio * kl
    return TextResult(coef * mixed.sum() / batch.normalizer, nll.detach(), kl.detach())


def _loss(log_q: Tensor, divergence: DenseDivergence, bounds: list[int], batch: Batch) -> MiniLLMResult:
    settings, kl, log_p_y = batch.settings, divergence.kl, divergence.teacher_logprob
    log_q_y = log_q.gather(1, batch.tokens.unsqueeze(1)).squeeze(1)
    q, q_b, m = token_probabilities(log_q_y, log_p_y, batch)
    weight, ratio = q_b / m, q / q_b
    before, through = _prefix_products(q.detach() / m, bounds)
    with torch.no_grad():
        log_q_b = log_q_y if batch.recorded.sampler_logprob is None else batch.recorded.sampler_logprob
        sampled = {"sampled": log_p_y - log_q_y, "sampled_frozen": log_p_y - log_q_b, "expected": -kl}
        reward = sampled[settings.later_reward] / settings.reward_scale
        if settings.reward_clip is not None:
            reward = reward.clamp(-settings.reward_clip, settings.reward_clip)
        if settings.long_term_weight == "product":
            reward = reward * (before if settings.later_reward == "expected" else through)
        advantage = _whiten(_returns(reward, bounds, settings), bounds, settings)
    single = {"none": 1.0, "token": weight, "prefix": before}[settings.single_step_weight] * kl
    if not settings.single_step:
        single = 0.0 * kl
    # What the clip sees, and what stands outside it; for products, q / sg[q]: value 1, gradient grad log q.
    inside, outside = ratio, weight
    if settings.clip_on == "mixture":
        inside, outside = ratio * weight, torch.ones_like(weight)
    if settings.long_term_weight == "none":
        outside = torch.ones_like(weight)
    if settings.long_term_weight == "product":
        inside, outside = q / q.detach(), torch.ones_like(weight)
    plain = -advantage * inside
    clipped = torch.zeros_like(advantage, dtype=torch.bool)
    if settings.clip_on != "none":
        bound = -advantage * inside.clamp(1 - settings.clip_eps, 1 + settings.clip_eps)
        clipped = bound > plain
        plain = torch.where(clipped, bound.detach(), plain)
    loss_single, loss_long = single.sum() / batch.normalizer, (outside * plain).sum() / batch.normalizer
    return MiniLLMResult(
        loss=loss_single + loss_long,
        loss_single_step=loss_single.detach(),
        loss_long_term=loss_long.detach(),
        kl=kl.detach(),
        student_logprob=log_q_y.detach(),
        teacher_logprob=log_p_y,
        weight=weight,
        ratio=ratio.detach(),
        advantage=advantage,
        clipped=clipped,
        entropy=-(log_q.detach().exp() * log_q.detach()).sum(-1),
        forward_kl=divergence.forward_kl,
        agreement=divergence.agreement,
    )


def _prefix_products(ratio: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor]:
    """Products of the ratios of slots 0..t-1 and 0..t of each sequence, float [N] each."""
    through = torch.cat([ratio[:0], *(ratio[a:b].cumprod(0) for a, b in pairwise(bounds))])
    before = torch.cat([through.new_ones(1), through[:-1]])[: through.numel()]
    starts = torch.tensor(bounds[:-1], device=ratio.device, dtype=torch.int64)
    before[starts] = 1.0
    return before, through


def _returns(reward: Tensor, bounds: list[int], settings: ObjectiveSettings) -> Tensor:
    """A_t = sum over later slots u of gamma^(u-t) r_u (and u = t for `current`), over the count of return_norm."""
    parts = [reward[:0]]
    for start, end in pairwise(bounds):
        slot = torch.arange(end - start, device=reward.device)
        distance = slot.unsqueeze(0) - slot.unsqueeze(1)
        counted = distance >= (1 if settings.return_start == "next" else 0)
        discount = torch.where(counted, settings.gamma ** distance.clamp(min=0).to(reward.dtype), 0.0)
        total = discount @ reward[start:end]
        count = {
            "none": torch.ones_like(slot),
            "later": len(slot) - slot - 1,
            "remaining": len(slot) - slot,
            "horizon": (settings.horizon or 0) - slot - 1,
        }[settings.return_norm]
        parts.append(torch.where(count > 0, total / count.clamp(min=1), 0.0))
    return torch.cat(parts)


def _whiten(advantage: Tensor, bounds: list[int], settings: ObjectiveSettings) -> Tensor:
    if settings.whiten == "none" or not len(advantage):
        return advantage
    padded = advantage
    if settings.whiten == "all_slots":
        padded = torch.cat(
            [advantage, advantage.new_zeros((len(bounds) - 1) * (settings.horizon or 0) - len(advantage))]
        )
    return (advantage - padded.mean()) / torch.sqrt(padded.var(correction=0) + 1e-8)
