"""How far a student is from its teacher at given states, exactly: both divergences over the whole vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective import Head, ObjectiveSettings, minillm_loss


@dataclass(frozen=True)
class Divergence:
    """At the state that predicts each of N tokens, nats: reverse_kl float [N], KL(q || p); forward_kl, KL(p || q)."""

    reverse_kl: Tensor
    forward_kl: Tensor


@torch.no_grad()
def divergence(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    tokens: Tensor,
    cu_seqlens: Tensor,
    *,
    temperature: float = 1.0,
) -> Divergence:
    """Both divergences at the states that predict `tokens`; the arguments are those of `minillm_loss`."""
    settings = ObjectiveSettings(alpha=0.0, temperature=temperature)
    result = minillm_loss(
        student_hidden, student_head, teacher_hidden, teacher_head, tokens, cu_seqlens, None, None, settings,
        forward_kl=True,
    )  # fmt: skip
    assert result.forward_kl is not None
    return Divergence(result.kl, result.forward_kl)
