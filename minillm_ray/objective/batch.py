"""The arguments of the objective, checked and brought to one form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective import checks
from minillm_ray.objective.head import Head, as_head, compute_dtype
from minillm_ray.objective.layout import Layout
from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.weights import Recorded


@dataclass(frozen=True)
class Batch:
    """The arguments of one call, checked: heads with a common vocabulary, log-probs in the softmax's dtype."""

    student_hidden: Tensor
    student_head: Head
    teacher_hidden: Tensor
    teacher_head: Head
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
    teacher_hidden: Tensor,
    teacher_head: Head | Tensor,
    tokens: Tensor,
    cu_seqlens: Tensor,
    sampler_logprob: Tensor | None,
    behavior_logprob: Tensor | None,
    settings: ObjectiveSettings,
    normalizer: float | None,
) -> Batch:
    """Everything that can be wrong with the arguments, before anything is computed."""
    student, teacher = as_head(student_head), as_head(teacher_head)
    bounds = checks.check_tokens(tokens, cu_seqlens)
    checks.check_horizon(bounds, settings.horizon)
    num_tokens = tokens.numel()
    for side, hidden, head in (("student", student_hidden, student), ("teacher", teacher_hidden, teacher)):
        checks.check_model(side, hidden, head, num_tokens=num_tokens)
    vocab_size = checks.common_vocabulary(student, teacher)
    recorded = {"sampler_logprob": sampler_logprob, "behavior_logprob": behavior_logprob}
    for name, values in recorded.items():
        checks.check_log_prob(name, values, num_tokens=num_tokens)
    device = student_hidden.device
    checks.check_device(
        device,
        {
            "student_head": student.weight,
            "student_head.bias": student.bias,
            "teacher_hidden": teacher_hidden,
            "teacher_head": teacher.weight,
            "teacher_head.bias": teacher.bias,
            "tokens": tokens,
            **recorded,
        },
    )
    checks.check_normalizer(normalizer, "the sum of settings.normalizer_share over the optimizer batch")
    skip = "leave the sample out of the batch"
    finite = [
        ("student_hidden", student_hidden, f"{skip}, or look for an overflow in the student's weights"),
        ("teacher_hidden", teacher_hidden, f"{skip} and score it again"),
        ("sampler_logprob", sampler_logprob, f"{skip}: a token that was drawn has a finite log-probability"),
        ("behavior_logprob", behavior_logprob, f"{skip}: a token that was drawn has a finite log-probability"),
    ]
    checks.check_content(tokens, vocab_size, finite)
    layout = Layout.from_cu_seqlens(cu_seqlens, num_tokens=num_tokens, device=device)
    dtype = compute_dtype(student_hidden, teacher_hidden)
    sampler, behavior = (None if v is None else v.detach().to(dtype) for v in recorded.values())
    return Batch(
        student_hidden=student_hidden,
        student_head=student,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher,
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
