"""The last linear layer of a language model, and what it does between hidden state and logit.

    raw = hidden @ weight.T + bias        z = soft_cap * tanh(scale * raw / soft_cap)      q = softmax(z / temperature)

Rows of `weight` at and above the vocabulary size pad an embedding: they are left out of the softmax and get gradient 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A language model's output layer. Tensors may be tied to an embedding; they are read, never changed.

    weight      float [rows, d]
    bias        float [rows], or None
    scale       factor on the logits (Granite: 1 / logits_scaling), or None
    soft_cap    bound of the logits, cap * tanh(z / cap) (Gemma), or None
    vocab_size  V, the ids the tokenizer has; rows from there on are padding. None: the other model's V, or all rows.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float | None = None
    soft_cap: float | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "soft_cap"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"Head.{name} is {value!r}; expected a positive number, or None to leave it out")


def as_head(head: Head | Tensor) -> Head:
    """A plain tensor [V, d] is a head without bias, scale or soft-cap."""
    return head if isinstance(head, Head) else Head(head)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Softmaxes are taken in fp32 whatever the model's dtype, in fp64 if any input is fp64."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
