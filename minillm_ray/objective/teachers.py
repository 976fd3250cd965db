"""What the objective may know of the teacher p at each packed token: all, its top k, or the sampled token alone.

The less is known, the less has to travel: d_t numbers a token, 2 k + 2, or 1. Only the first gives KL(q || p) exactly.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from minillm_ray.objective import checks
from minillm_ray.objective.head import Head, as_head
from minillm_ray.objective.settings import ObjectiveSettings


@dataclass(frozen=True)
class HiddenTeacher:
    """Final hidden states, float [N, d_t], and the teacher's head: the whole distribution, after one more product."""

    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class TopKTeacher:
    """The k most probable tokens, and the rest of the vocabulary as one bucket. Approximate.

    ids              int64 [N, k], k >= 1, distinct in each row
    logprob          float [N, k], nats: log p of each of them
    tail_logprob     float [N], nats: log of the mass of all other tokens; -inf where k = V
    token_logprob    float [N], nats: log p(y) of the sampled token, among the k or not

    Every other v gets the bucket's log-ratio l_v = log q(tail) - log p(tail), and KL is that of the k + 1 buckets: at
    most the exact one (data-processing inequality), equal to it at k = V. Sampled rewards and weights stay exact.
    """

    ids: Tensor
    logprob: Tensor
    tail_logprob: Tensor
    token_logprob: Tensor


@dataclass(frozen=True)
class SampledTeacher:
    """log p(y) of the sampled token and nothing else, float [N], nats. Unbiased, noisier.

    The single-step half becomes the score-function estimate of its own gradient. With l_v = log q(v) - log p(v),

        grad KL = sum_v grad q(v) l_v + sum_v q(v) grad log q(v)        the second sum is grad 1 = 0
                = E_{y~q}[ l_y grad log q(y) ]                          since grad q = q grad log q
                = E_{y~m}[ (q / m)(y) l_y grad log q(y) ]               q / m = w omega

    so q / m of the token itself belongs to the estimate, whatever single_step_weight is: `none` and `token` (whose mean
    factor is 1) are the same here, and `prefix` multiplies by the product of the slots before. Never clipped.
    The `kl` reported is (q / m) k3, k3 = e^d - 1 - d with d = log p(y) - log q(y): not negative, and its mean over
    y ~ m is KL. Later rewards have to be sampled: an expected one is a KL.
    """

    logprob: Tensor


Teacher = HiddenTeacher | TopKTeacher | SampledTeacher
TeacherArgument: TypeAlias = Tensor | TopKTeacher | SampledTeacher
"""What a caller gives as `teacher_hidden`: hidden states, which need the head beside them, or one of the others."""


def check_teacher(
    teacher_hidden: TeacherArgument,
    teacher_head: Head | Tensor | None,
    *,
    num_tokens: int,
    settings: ObjectiveSettings,
    forward_kl: bool,
) -> Teacher:
    """The teacher in one form, its shapes and dtypes checked, and the settings against what it can give."""
    if isinstance(teacher_hidden, Tensor):
        if teacher_head is None:
            raise ValueError("teacher_head is None; teacher_hidden holds hidden states, give the head that reads them")
        teacher = HiddenTeacher(teacher_hidden, as_head(teacher_head))
        checks.check_model("teacher", teacher.hidden, teacher.head, num_tokens=num_tokens)
        return teacher
    kind = type(teacher_hidden).__name__
    if teacher_head is not None:
        raise ValueError(f"teacher_head is given beside a {kind}, which holds log-probabilities already; pass None")
    if isinstance(teacher_hidden, TopKTeacher):
        ids = teacher_hidden.ids
        if ids.dim() != 2 or ids.shape[0] != num_tokens or ids.shape[1] < 1 or ids.dtype != torch.int64:
            raise ValueError(
                f"{kind}.ids has shape {list(ids.shape)} and dtype {ids.dtype}; expected int64 [{num_tokens}, k]"
            )
        _check_floats(f"{kind}.logprob", teacher_hidden.logprob, tuple(ids.shape))
        _check_floats(f"{kind}.tail_logprob", teacher_hidden.tail_logprob, (num_tokens,))
        _check_floats(f"{kind}.token_logprob", teacher_hidden.token_logprob, (num_tokens,))
        return teacher_hidden
    _check_floats(f"{kind}.logprob", teacher_hidden.logprob, (num_tokens,))
    if settings.later_reward == "expected":
        raise ValueError(
            f"objective.later_reward=expected is minus the KL at each later state, which a {kind} cannot give; "
            "set later_reward=sampled, or give hidden states or the top k"
        )
    if forward_kl:
        raise ValueError(f"forward_kl is an average under the whole teacher, which a {kind} cannot give; leave it out")
    return teacher_hidden


def teacher_tensors(teacher: Teacher) -> dict[str, Tensor | None]:
    """Its tensors under the names that an error gives them."""
    if isinstance(teacher, HiddenTeacher):
        return {
            "teacher_hidden": teacher.hidden,
            "teacher_head": teacher.head.weight,
            "teacher_head.bias": teacher.head.bias,
        }
    return {f"{type(teacher).__name__}.{name}": tensor for name, tensor in vars(teacher).items()}


def must_be_finite(teacher: Teacher) -> dict[str, Tensor]:
    """Those of its tensors that may hold nothing but finite numbers."""
    if isinstance(teacher, HiddenTeacher):
        return {"teacher_hidden": teacher.hidden}
    if isinstance(teacher, SampledTeacher):
        return {"SampledTeacher.logprob": teacher.logprob}
    return {"TopKTeacher.logprob": teacher.logprob, "TopKTeacher.token_logprob": teacher.token_logprob}


def check_top_k(teacher: TopKTeacher, vocab_size: int) -> None:
    """Distinct ids inside the vocabulary, and a bucket for the rest unless there is none."""
    num_tokens, k = teacher.ids.shape
    if num_tokens == 0:
        return
    if k > vocab_size:
        raise ValueError(f"TopKTeacher.ids has {k} ids a token, the vocabulary {vocab_size}; expected at most as many")
    ordered = teacher.ids.sort(dim=1).values
    outside = (ordered[:, 0] < 0) | (ordered[:, -1] >= vocab_size)
    repeated = (ordered.diff(dim=1) == 0).any(1)
    tail = teacher.tail_logprob
    bad_tail = ~tail.isfinite() if k < vocab_size else tail.isnan()
    bad = outside | repeated | bad_tail
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    if outside[row] or repeated[row]:
        raise ValueError(
            f"TopKTeacher.ids[{row}] holds {'an id twice' if repeated[row] else 'an id outside the vocabulary'}; "
            f"expected {k} distinct ids below {vocab_size}"
        )
    raise ValueError(
        f"TopKTeacher.tail_logprob[{row}] is {float(tail[row])}; expected the finite log of the mass of "
        f"the {vocab_size - k} other tokens: sum their probabilities, 1 minus the sum of the k rounds to 0"
    )


def _check_floats(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype not in checks.FLOATS:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and dtype {tensor.dtype}; expected float {list(shape)}"
        )
