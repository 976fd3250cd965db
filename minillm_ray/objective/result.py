"""What the objective returns: a loss to differentiate, and per-token numbers to reduce.

Means over a step are made by the caller from sums and counts of the per-token tensors, so that a batch cut into
micro-batches or spread over ranks gives the same numbers. `metrics` is the reduction of this call alone.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopKAgreement:
    """How much of both models the teacher's k most probable tokens hold, float [N], each from 0 to 1.

    student_mass, teacher_mass   probability on the k ids: what is left over is one bucket, seen as a whole
    overlap                      share of the student's own k most probable tokens that are among them
    """

    student_mass: Tensor
    teacher_mass: Tensor
    overlap: Tensor


@dataclass(frozen=True)
class MiniLLMResult:
    """All tensors but `loss` are detached; [N] is one entry for each packed token.

    loss             scalar, differentiable in the student's hidden states and head: the sum of the next two
    loss_single_step, loss_long_term   its terms, over the normaliser; all three add up over micro-batches and ranks
    kl               float [N], nats: KL(q || p) over the whole vocabulary at the state that predicts the token. From a
                     TopKTeacher a lower bound of it, from a SampledTeacher an unbiased estimate, not negative
    student_logprob  float [N], nats: log q(y) under the current student
    teacher_logprob  float [N], nats: log p(y)
    weight           float [N]: w = q_b / m, 1 without a mixture. At most 1 / (1 - alpha) where neither model's draw was
                     truncated; no bound where m is of a truncated one
    ratio            float [N]: omega = q / q_b, 1 on-policy
    advantage        float [N]: A, the return that multiplies grad log q(y), as used
    clipped          bool [N]: the clip took the token's long-term gradient away
    entropy          float [N], nats: of q
    forward_kl       float [N], nats: KL(p || q), or None unless asked for
    agreement        with a TopKTeacher only
    """

    loss: Tensor
    loss_single_step: Tensor
    loss_long_term: Tensor
    kl: Tensor
    student_logprob: Tensor
    teacher_logprob: Tensor
    weight: Tensor
    ratio: Tensor
    advantage: Tensor
    clipped: Tensor
    entropy: Tensor
    forward_kl: Tensor | None = None
    agreement: TopKAgreement | None = None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """This call's numbers, read on the host once when first asked for (on a GPU that waits for the walk)."""
        count = self.kl.numel()
        values = {
            "loss": self.loss.detach(),
            "loss_single_step": self.loss_single_step,
            "loss_long_term": self.loss_long_term,
        }
        if count:
            total = self.weight * self.ratio
            values |= {
                "kl_mean": self.kl.mean(),
                "entropy_mean": self.entropy.mean(),
                "student_logprob_mean": self.student_logprob.mean(),
                "teacher_logprob_mean": self.teacher_logprob.mean(),
                "advantage_mean": self.advantage.mean(),
                "weight_mean": self.weight.mean(),
                "weight_max": self.weight.max(),
                "ratio_mean": self.ratio.mean(),
                "ratio_max": self.ratio.max(),
                "clip_fraction": self.clipped.to(self.kl.dtype).mean(),
                "effective_sample_fraction": total.sum().square() / (count * total.square().sum()),
            }
            if self.forward_kl is not None:
                values["forward_kl_mean"] = self.forward_kl.mean()
            if self.agreement is not None:
                values |= {f"topk_{name}_mean": each.mean() for name, each in vars(self.agreement).items()}
        return {"num_tokens": float(count)} | _on_host(values)


def _on_host(values: dict[str, Tensor]) -> dict[str, float]:
    return dict(zip(values, torch.stack([value.double() for value in values.values()]).tolist(), strict=True))
