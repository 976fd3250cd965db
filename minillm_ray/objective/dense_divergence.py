"""KL(q || p) of each token for every kind of teacher, from its definition on dense [N, V] log-probabilities.

Half of the oracle: the walk's closed forms are not used, autograd differentiates what is written here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from minillm_ray.objective.batch import Batch
from minillm_ray.objective.head import Head
from minillm_ray.objective.result import TopKAgreement
from minillm_ray.objective.teachers import HiddenTeacher, SampledTeacher, TopKTeacher


@dataclass(frozen=True)
class DenseDivergence:
    """kl float [N], differentiable in log q; teacher_logprob float [N], log p(y); the others as in MiniLLMResult."""

    kl: Tensor
    teacher_logprob: Tensor
    forward_kl: Tensor | None
    agreement: TopKAgreement | None = None


def dense_log_softmax(hidden: Tensor, head: Head, *, vocab_size: int, temperature: float, dtype: torch.dtype) -> Tensor:
    """float [N, V], in fp32 or fp64, differentiable in hidden and the head's tensors."""
    weight = head.weight[:vocab_size].to(dtype)
    bias = None if head.bias is None else head.bias[:vocab_size].to(dtype)
    logits = functional.linear(hidden.to(dtype), weight, bias)
    if head.scale is not None:
        logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return torch.log_softmax(logits / temperature, dim=-1)


def dense_divergence(log_q: Tensor, batch: Batch, *, forward_kl: bool) -> DenseDivergence:
    """log_q float [N, V]. forward_kl: whether to make KL(p || q) too."""
    if isinstance(batch.teacher, HiddenTeacher):
        return _of_logits(log_q, batch, batch.teacher, forward_kl=forward_kl)
    if isinstance(batch.teacher, TopKTeacher):
        return _of_buckets(log_q, batch, batch.teacher, forward_kl=forward_kl)
    return _of_samples(log_q, batch, batch.teacher)


def token_probabilities(log_q_y: Tensor, log_p_y: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """q, q_b and m of each sampled token, float [N]; only q carries a gradient."""
    q = log_q_y.exp()
    sampler, behavior = batch.recorded.sampler_logprob, batch.recorded.behavior_logprob
    q_b = q.detach() if sampler is None else sampler.exp()
    if behavior is not None:
        m = behavior.exp()
    elif sampler is not None:
        m = batch.settings.alpha * log_p_y.exp() + (1 - batch.settings.alpha) * q_b
    else:
        m = q_b
    return q, q_b, m


def _of_logits(log_q: Tensor, batch: Batch, teacher: HiddenTeacher, *, forward_kl: bool) -> DenseDivergence:
    with torch.no_grad():
        log_p = dense_log_softmax(
            teacher.hidden,
            teacher.head,
            vocab_size=batch.vocab_size,
            temperature=batch.settings.temperature,
            dtype=batch.dtype,
        )
    other = _kl(log_p, log_q.detach()) if forward_kl else None
    return DenseDivergence(_kl(log_q, log_p), _of_tokens(log_p, batch), other)


def _of_buckets(log_q: Tensor, batch: Batch, teacher: TopKTeacher, *, forward_kl: bool) -> DenseDivergence:
    k = teacher.ids.shape[1]
    log_q_k, log_p_k = log_q.gather(1, teacher.ids), teacher.logprob.to(batch.dtype)
    log_p_tail = teacher.tail_logprob.to(batch.dtype).unsqueeze(1)
    buckets = log_q_k, log_p_k
    if k < batch.vocab_size:
        others = log_q.scatter(1, teacher.ids, -torch.inf).logsumexp(1, keepdim=True)
        buckets = torch.cat([log_q_k, others], 1), torch.cat([log_p_k, log_p_tail], 1)
    kl, other = _kl(*buckets), _kl(buckets[1], buckets[0].detach()) if forward_kl else None
    own = log_q.detach().topk(k).indices
    shared = (own.unsqueeze(2) == teacher.ids.unsqueeze(1)).any(2)
    agreement = TopKAgreement(
        student_mass=log_q_k.detach().exp().sum(1),
        teacher_mass=log_p_k.exp().sum(1),
        overlap=shared.to(batch.dtype).mean(1),
    )
    return DenseDivergence(kl, teacher.token_logprob.to(batch.dtype), other, agreement)


def _of_samples(log_q: Tensor, batch: Batch, teacher: SampledTeacher) -> DenseDivergence:
    """The value is the weighted k3 estimate, the gradient the score function's: two estimates of one KL."""
    log_q_y, log_p_y = _of_tokens(log_q, batch), teacher.logprob.to(batch.dtype)
    q, _, m = token_probabilities(log_q_y.detach(), log_p_y, batch)
    value = (q / m) * (log_p_y.exp() / q - 1 - (log_p_y - log_q_y.detach()))
    score = (q / m) * (log_q_y.detach() - log_p_y) * log_q_y
    return DenseDivergence(value + score - score.detach(), log_p_y, None)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b), float [N], of log-probabilities [N, V]."""
    return functional.kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1)


def _of_tokens(log_prob: Tensor, batch: Batch) -> Tensor:
    return log_prob.gather(1, batch.tokens.unsqueeze(1)).squeeze(1)
