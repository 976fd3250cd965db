"""The arguments of the objective, checked and brought to one form."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm_ray.objective import checks
from minillm_ray.objective.head import Head, as_head, compute_dtype
from minillm_ray.objective.layout import Layout
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.teachers import (
    HiddenTeacher,
    SampledTeacher,
    Teacher,
    TeacherArgument,
    TopKTeacher,
    check_teacher,
    check_top_k,
    must_be_finite,
    teacher_tensors,
)
from minillm_ray.objective.weights import Recorded


@dataclass(frozen=True)
class Batch:
    """The arguments of one call, checked: heads with a common vocabulary, log-probs in the softmax's dtype."""

    student_hidden: Tensor
    student_head: Head
    teacher: Teacher
    tokens: Tensor
    layout: Layout
    recorded: Recorded
    settings: ObjectiveSettings
    vocab_size: int
    normalizer: float
    dtype: torch.dtype


def check_batch(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    teacher_hidden: TeacherArgument,
    teacher_head: Head | Tensor | None,
    tokens: Tensor,
    cu_seqlens: Tensor,
    sampler_logprob: Tensor | None,
    behavior_logprob: Tensor | None,
    settings: ObjectiveSettings,
    normalizer: float | None,
    *,
    forward_kl: bool,
) -> Batch:
    """Everything that can be wrong with the arguments, before anything is computed."""
    student = as_head(student_head)
    bounds = checks.check_tokens(tokens, cu_seqlens)
    checks.check_horizon(bounds, settings.horizon)
    num_tokens = tokens.numel()
    checks.check_model("student", student_hidden, student, num_tokens=num_tokens)
    teacher = check_teacher(
        teacher_hidden, teacher_head, num_tokens=num_tokens, settings=settings, forward_kl=forward_kl
    )
    vocab_size = checks.common_vocabulary(student, teacher.head if isinstance(teacher, HiddenTeacher) else None)
    recorded = {"sampler_logprob": sampler_logprob, "behavior_logprob": behavior_logprob}
    for name, values in recorded.items():
        checks.check_log_prob(name, values, num_tokens=num_tokens)
    device = student_hidden.device
    checks.check_device(
        device,
        {
            "student_head": student.weight,
            "student_head.bias": student.bias,
            **teacher_tensors(teacher),
            "tokens": tokens,
            **recorded,
        },
    )
    checks.check_normalizer(normalizer, "the sum of settings.normalizer_share over the optimizer batch")
    skip = "leave the sample out of the batch"
    finite = [
        ("student_hidden", student_hidden, f"{skip}, or look for an overflow in the student's weights"),
        *((name, tensor, f"{skip} and score it again") for name, tensor in must_be_finite(teacher).items()),
        ("sampler_logprob", sampler_logprob, f"{skip}: a token that was drawn has a finite log-probability"),
        ("behavior_logprob", behavior_logprob, f"{skip}: a token that was drawn has a finite log-probability"),
    ]
    checks.check_content(tokens, vocab_size, finite)
    if isinstance(teacher, TopKTeacher):
        check_top_k(teacher, vocab_size)
    if isinstance(teacher, SampledTeacher) and settings.single_step_weight == "token":
        settings = replace(settings, single_step_weight="none")  # the estimate has its token's weight in it
    layout = Layout.from_cu_seqlens(cu_seqlens, num_tokens=num_tokens, device=device)
    dtype = compute_dtype(student_hidden, *must_be_finite(teacher).values())
    sampler, behavior = (None if v is None else v.detach().to(dtype) for v in recorded.values())
    return Batch(
        student_hidden=student_hidden,
        student_head=student,
        teacher=teacher,
        tokens=tokens.long(),
        layout=layout,
        recorded=Recorded(sampler, behavior, settings.alpha),
        settings=settings,
        vocab_size=vocab_size,
        normalizer=total_normalizer(settings, layout, normalizer),
        dtype=dtype,
    )


def total_normalizer(settings: ObjectiveSettings, layout: Layout, normalizer: float | None) -> float:
    """Z: what this call's sum of token losses is divided by. 1 for an empty batch."""
    share = settings.normalizer_share(layout.num_tokens, layout.num_sequences)
    total = float(share if normalizer is None else normalizer)
    if settings.loss_norm == "tokens_microbatch":
        total *= layout.num_tokens
    return total or 1.0
