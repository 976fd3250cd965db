"""minillm_loss: checks, then the walk, then the loss handed to autograd."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm_ray.objective.batch import Batch, check_batch
from minillm_ray.objective.divergence import Divergence, ExactDivergence
from minillm_ray.objective.gradients import Gradients, Wanted, attach
from minillm_ray.objective.head import Head
from minillm_ray.objective.products import HeadProducts
from minillm_ray.objective.result import MiniLLMResult, TopKAgreement
from minillm_ray.objective.sampled_divergence import SampledDivergence
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.teachers import HiddenTeacher, SampledTeacher, TeacherArgument, TopKTeacher
from minillm_ray.objective.terms import Terms, TokenStatistics
from minillm_ray.objective.topk_divergence import TopKDivergence
from minillm_ray.objective.walk import survey, walk
from minillm_ray.objective.workspace import Workspace


def minillm_loss(
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
    """MiniLLM's loss on a packed batch, with its gradient made in one pass over chunks of tokens.

        loss = 1/Z sum_t [ c_t KL(q || p)_t  +  w_t max(-A_t omega_t, -A_t clip(omega_t)) ]          (clip_on = policy)

    Source: MiniLLM (arXiv 2306.08543), eq. 3 and 7; the switches of `settings` choose c, w, A and the clip.

    student_hidden    float [N, d_s]: final hidden states at the positions that predict `tokens`.
    student_head      Head or weight [V, d_s]. Gradients flow to its weight and bias, tied or not.
    teacher_hidden    float [N, d_t], teacher_head Head or weight [V, d_t]: the same for p. Never differentiated.
                      Or a TopKTeacher (approximate) or a SampledTeacher (noisier), and teacher_head None.
    tokens            int64 [N]: the response tokens of B sequences, end to end; a sampled EOS is one of them.
    cu_seqlens        int32 or int64 [B+1]: where each sequence starts, and N.
    sampler_logprob   float [N], nats: log q_b(y) at the weights that drew y, over the whole vocabulary even where the
                      sampler truncates it (top-p, top-k). None: the current student drew it.
    behavior_logprob  float [N], nats: log m(y), of the mixture as it was drawn from, truncations included. None: formed
                      from alpha, p and sampler_logprob; with neither, m = q.
    normalizer        Z over all ranks and accumulation steps: the sum of `settings.normalizer_share`. None: this call.
    forward_kl        also make KL(p || q) of each token (one more exponential a logit).

    Without anything to differentiate (or under torch.no_grad) the backward products are not made.
    Raises ValueError for input that cannot be trained on: it names the argument, the place and the remedy.
    """
    batch = check_batch(
        student_hidden, student_head, teacher_hidden, teacher_head, tokens, cu_seqlens,
        sampler_logprob, behavior_logprob, settings, normalizer, forward_kl=forward_kl,
    )  # fmt: skip
    gradients = _room(batch, Wanted.of(batch.student_hidden, batch.student_head))
    result = assemble(batch, run_walk(batch, gradients, forward_kl=forward_kl))
    return replace(result, loss=attach(result.loss, batch.student_hidden, batch.student_head, gradients))


@dataclass(frozen=True)
class TermGradients:
    """Gradient of each half of the loss in the student's hidden states, float [N, d_s]. They add up to the whole."""

    single_step: Tensor
    long_term: Tensor


def term_gradients(
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
) -> TermGradients:
    """The two halves' gradients apart, for a signal-to-noise probe: the arguments of `minillm_loss`, walked twice."""
    batch = check_batch(
        student_hidden, student_head, teacher_hidden, teacher_head, tokens, cu_seqlens,
        sampler_logprob, behavior_logprob, settings, normalizer, forward_kl=False,
    )  # fmt: skip
    halves = []
    for single_step in (True, False):
        gradients = _room(batch, Wanted(hidden=True, weight=False, bias=False))
        run_walk(batch, gradients, single_step=single_step, long_term=not single_step)
        halves.append(gradients.hidden)
    return TermGradients(*halves)


def _room(batch: Batch, wanted: Wanted) -> Gradients:
    return Gradients.make(
        wanted, batch.student_hidden, batch.student_head, vocab_size=batch.vocab_size, dtype=batch.dtype
    )


@dataclass(frozen=True)
class Walked:
    """What the walk leaves beside the gradients: terms as far as they are known, statistics, advantages [N]."""

    terms: Terms
    stats: TokenStatistics
    advantage: Tensor
    agreement: TopKAgreement | None


def run_walk(
    batch: Batch,
    gradients: Gradients,
    *,
    forward_kl: bool = False,
    single_step: bool = True,
    long_term: bool = True,
) -> Walked:
    """The walk, after a survey of whatever has to be known before the first gradient; fills `gradients`."""
    settings = batch.settings
    with torch.no_grad(), torch.autocast(batch.tokens.device.type, enabled=False):
        options = {"vocab_size": batch.vocab_size, "temperature": settings.temperature, "dtype": batch.dtype}
        student = HeadProducts(batch.student_hidden, batch.student_head, **options)
        teacher = None
        if isinstance(batch.teacher, HiddenTeacher):
            teacher = HeadProducts(batch.teacher.hidden, batch.teacher.head, **options)
        divergence = _divergence(batch)
        space = Workspace(
            student,
            teacher,
            batch.tokens,
            dtype=batch.dtype,
            memory_mb=settings.logits_memory_mb,
            lent=gradients.lend(batch.vocab_size),
        )
        terms = Terms(settings, batch.layout, batch.recorded)
        if gradients.nothing:
            stats = survey(space, divergence, forward_kl=forward_kl)
            terms = terms.knowing(stats)
            return Walked(terms, stats, terms.advantage(stats), divergence.agreement)
        known = None
        if terms.needs_returns or terms.needs_prefix:
            stats = survey(space, divergence, teacher=terms.needs_returns or batch.recorded.needs_teacher)
            terms = terms.knowing(stats)
            known = terms.advantage(stats) if terms.needs_returns else None
        stats, advantage = walk(
            space,
            divergence,
            terms,
            normalizer=batch.normalizer,
            made=gradients,
            advantage=known,
            forward_kl=forward_kl,
            single_step=single_step,
            long_term=long_term,
        )
        return Walked(terms, stats, advantage, divergence.agreement)


def _divergence(batch: Batch) -> Divergence:
    """The single-step half, as far as the teacher is known."""
    if isinstance(batch.teacher, TopKTeacher):
        return TopKDivergence(batch.teacher, batch.dtype)
    if isinstance(batch.teacher, SampledTeacher):
        return SampledDivergence(batch.teacher, batch.recorded, batch.dtype)
    return ExactDivergence()


def assemble(batch: Batch, walked: Walked) -> MiniLLMResult:
    """The loss by term, and the per-token numbers, all detached."""
    terms, stats, advantage = walked.terms, walked.stats, walked.advantage
    everything = slice(None)
    correction = terms.correction(everything, stats)
    term = terms.long_term(advantage, correction)
    single = (terms.single_step_weight(everything, correction) * stats.kl).sum() / batch.normalizer
    long = term.loss.sum() / batch.normalizer
    return MiniLLMResult(
        loss=single + long,
        loss_single_step=single,
        loss_long_term=long,
        kl=stats.kl,
        student_logprob=stats.student_logprob,
        teacher_logprob=stats.teacher_logprob,
        weight=correction.log_weight.exp(),
        ratio=correction.log_ratio.exp(),
        advantage=advantage,
        clipped=term.clipped,
        entropy=stats.entropy,
        forward_kl=stats.forward_kl,
        agreement=walked.agreement,
    )
