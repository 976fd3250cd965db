"""The plain-text loss: language modelling, optionally mixed with forward KL to the teacher, in one pass.

    loss = coef / Z sum_t [ (1 - kd_ratio) (-log q(y_t)) + kd_ratio KL(p || q)_t ]
    d / dz_v = q_v - (1 - kd_ratio) [v = y] - kd_ratio p_v

Source: L_PT of MiniLLM (kd_ratio 0; 0.5 in the authors' code). The same loss is SFT (kd_ratio 0) and word-level
distillation on data. The temperature is 1: text was not drawn by the sampler.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective import checks
from minillm_ray.objective.gradients import Gradients, Wanted, attach
from minillm_ray.objective.head import Head, as_head, compute_dtype
from minillm_ray.objective.products import HeadProducts
from minillm_ray.objective.settings import DEFAULT
from minillm_ray.objective.workspace import Tile, Workspace, pick


@dataclass(frozen=True)
class TextResult:
    """loss: scalar, differentiable in the student's hidden states and head. The others are detached.

    nll         float [N], nats: -log q(y)
    forward_kl  float [N], nats: KL(p || q), or None without a teacher
    """

    loss: Tensor
    nll: Tensor
    forward_kl: Tensor | None


@dataclass(frozen=True)
class TextBatch:
    """The arguments of one call, checked."""

    student_hidden: Tensor
    student_head: Head
    teacher_hidden: Tensor | None
    teacher_head: Head | None
    tokens: Tensor
    kd_ratio: float
    coef: float
    normalizer: float
    vocab_size: int
    dtype: torch.dtype


def text_loss(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    tokens: Tensor,
    *,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | Tensor | None = None,
    kd_ratio: float = 0.0,
    coef: float = 1.0,
    normalizer: float | None = None,
    logits_memory_mb: int = DEFAULT["logits_memory_mb"],
) -> TextResult:
    """Cross-entropy of text tokens, mixed with KL(p || q) when kd_ratio is above 0.

    student_hidden  float [N, d_s]: final hidden states at the positions that predict `tokens`.
    tokens          int64 [N]. Only tokens to train on: padding and prompts are left out before.
    teacher_hidden  float [N, d_t] and teacher_head: given if and only if kd_ratio > 0.
    kd_ratio, coef  `text_kd_ratio` and `lm_coef` of ObjectiveSettings.
    normalizer      text tokens of the whole optimizer batch. None: this call is all.

    Raises ValueError for input that cannot be trained on.
    """
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
    wanted = Wanted.of(student_hidden, batch.student_head)
    gradients = Gradients.make(
        wanted, student_hidden, batch.student_head, vocab_size=batch.vocab_size, dtype=batch.dtype
    )
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        nll, forward_kl = _walk(batch, gradients, logits_memory_mb)
        total = nll.sum() if forward_kl is None else ((1 - kd_ratio) * nll + kd_ratio * forward_kl).sum()
        loss = coef * total / batch.normalizer
    return TextResult(attach(loss, student_hidden, batch.student_head, gradients), nll, forward_kl)


def check_text(
    student_hidden: Tensor,
    student_head: Head | Tensor,
    tokens: Tensor,
    *,
    teacher_hidden: Tensor | None,
    teacher_head: Head | Tensor | None,
    kd_ratio: float,
    coef: float,
    normalizer: float | None,
) -> TextBatch:
    """Everything that can be wrong with the arguments, before anything is computed."""
    if not 0.0 <= kd_ratio <= 1.0:
        raise ValueError(f"kd_ratio is {kd_ratio}; expected a share from 0 to 1")
    with_teacher = teacher_hidden is not None and teacher_head is not None
    if with_teacher != (kd_ratio > 0) or (teacher_hidden is None) != (teacher_head is None):
        raise ValueError(
            f"kd_ratio is {kd_ratio} and teacher_hidden and teacher_head are "
            f"{'given' if with_teacher else 'not both given'}; give both with kd_ratio above 0, neither with 0"
        )
    student = as_head(student_head)
    teacher = as_head(teacher_head) if with_teacher else None
    checks.check_ids("tokens", tokens)
    checks.check_model("student", student_hidden, student, num_tokens=tokens.numel())
    if teacher is not None:
        checks.check_model("teacher", teacher_hidden, teacher, num_tokens=tokens.numel())
    vocab_size = checks.common_vocabulary(student, teacher)
    tensors = {"student_head": student.weight, "student_head.bias": student.bias, "tokens": tokens}
    if teacher is not None:
        tensors |= {"teacher_hidden": teacher_hidden, "teacher_head": teacher.weight, "teacher_head.bias": teacher.bias}
    checks.check_device(student_hidden.device, tensors)
    checks.check_normalizer(normalizer, "the number of text tokens of the whole batch")
    skip = "leave the text out of the batch"
    checks.check_content(
        tokens,
        vocab_size,
        [
            ("student_hidden", student_hidden, f"{skip}, or look for an overflow in the student's weights"),
            ("teacher_hidden", teacher_hidden, f"{skip} and score it again"),
        ],
    )
    return TextBatch(
        student_hidden=student_hidden,
        student_head=student,
        teacher_hidden=teacher_hidden,
        teacher_head=teacher,
        tokens=tokens.long(),
        kd_ratio=kd_ratio,
        coef=coef,
        normalizer=float(tokens.numel() if normalizer is None else normalizer) or 1.0,
        vocab_size=vocab_size,
        dtype=compute_dtype(*(hidden for hidden in (student_hidden, teacher_hidden) if hidden is not None)),
    )


def _walk(batch: TextBatch, gradients: Gradients, memory_mb: int) -> tuple[Tensor, Tensor | None]:
    """nll and forward_kl [N], each chunk visited once; `gradients` is filled."""
    options = {"vocab_size": batch.vocab_size, "temperature": 1.0, "dtype": batch.dtype}
    student = HeadProducts(batch.student_hidden, batch.student_head, **options)
    teacher = None
    if batch.teacher_hidden is not None and batch.teacher_head is not None:
        teacher = HeadProducts(batch.teacher_hidden, batch.teacher_head, **options)
    lent = gradients.lend(batch.vocab_size)
    space = Workspace(student, teacher, batch.tokens, dtype=batch.dtype, memory_mb=memory_mb, lent=lent)
    nll, forward_kl = space.vector(), None if teacher is None else space.vector()
    factor = batch.coef * student.slope / batch.normalizer
    for start, end in space.chunks():
        for tile in space.tiles(start, end):
            space.log_softmax_(tile)
            pick(tile.student, tile.tokens, out=nll[tile.rows])
            if forward_kl is not None:
                torch.softmax(tile.teacher, dim=-1, out=tile.scratch)
                cross = torch.linalg.vecdot(tile.scratch, tile.student)
                forward_kl[tile.rows] = torch.linalg.vecdot(tile.scratch, tile.teacher) - cross
            if not gradients.nothing:
                _logit_gradient(tile, batch.kd_ratio, factor)
        space.add_products(gradients, start, end)
    return nll.neg_(), forward_kl


def _logit_gradient(tile: Tile, kd_ratio: float, factor: float) -> None:
    """factor (q - (1 - kd_ratio) [v = y] - kd_ratio p), float [n, V]: log q is in `student`, p in `scratch`."""
    torch.softmax(tile.student, dim=-1, out=tile.student)
    if kd_ratio > 0:
        tile.student.sub_(tile.scratch, alpha=kd_ratio)
    tile.student.scatter_add_(1, tile.tokens.unsqueeze(1), tile.student.new_full((len(tile.tokens), 1), kd_ratio - 1.0))
    tile.student.mul_(factor)
    tile.finish_gradient()
