"""Gradients made outside autograd: which ones are wanted, where they add up, how autograd gets them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_ray.objective.head import Head


@dataclass(frozen=True)
class Wanted:
    """Whose gradient is to be made."""

    hidden: bool
    weight: bool
    bias: bool

    @classmethod
    def of(cls, hidden: Tensor, head: Head) -> "Wanted":
        """What autograd would differentiate here and now: nothing under torch.no_grad."""
        enabled = torch.is_grad_enabled()
        return cls(
            hidden=enabled and hidden.requires_grad,
            weight=enabled and head.weight.requires_grad,
            bias=enabled and head.bias is not None and head.bias.requires_grad,
        )


@dataclass(frozen=True)
class Gradients:
    """hidden [N, d] in the model's dtype; weight [rows, d] and bias [rows] in the softmax's. None: not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def nothing(self) -> bool:
        return self.hidden is None and self.weight is None and self.bias is None

    @classmethod
    def make(cls, wanted: Wanted, hidden: Tensor, head: Head, *, vocab_size: int, dtype: torch.dtype) -> "Gradients":
        """Room for the gradients of one walk: it writes every entry but the rows that pad the vocabulary, which are 0.

        A batch without tokens is not walked: all its gradients are 0 from the start.
        """
        (num_tokens, width), rows = hidden.shape, head.weight.shape[0]
        options = {"dtype": dtype, "device": hidden.device}
        made = cls(
            hidden=torch.empty_like(hidden) if wanted.hidden else None,
            weight=torch.empty(rows, width, **options) if wanted.weight else None,
            bias=torch.empty(rows, **options) if wanted.bias else None,
        )
        unwritten = slice(vocab_size if num_tokens else 0, None)
        for tensor in (made.weight, made.bias):
            if tensor is not None:
                tensor[unwritten].zero_()
        return made

    def lend(self, vocab_size: int) -> Tensor | None:
        """The memory of the head's gradient as float [d, V], for use until the walk writes it."""
        if self.weight is None:
            return None
        return self.weight[:vocab_size].view(-1, vocab_size)


def attach(loss: Tensor, hidden: Tensor, head: Head, gradients: Gradients) -> Tensor:
    """A scalar equal to `loss` whose gradients in the student's tensors are the given ones. Once differentiable."""
    pairs = [(hidden, gradients.hidden), (head.weight, gradients.weight), (head.bias, gradients.bias)]
    kept = [(tensor, made.to(tensor.dtype)) for tensor, made in pairs if tensor is not None and made is not None]
    if not kept:
        return loss
    return _HandOff.apply(loss, len(kept), *(tensor for tensor, _ in kept), *(made for _, made in kept))


class _HandOff(torch.autograd.Function):
    """Forward gives a loss that is known already; backward gives gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[num_inputs:])
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # A head's gradient is V x d: at the usual factor 1 it is passed on without a second copy.
        if loss_gradient.item() != 1.0:
            gradients = tuple(made * loss_gradient.to(made.dtype) for made in gradients)
        return (None, None, *gradients, *(None for _ in gradients))
