"""One model's head over packed hidden states: logits into a buffer, log-softmax in place, gradients back.

Buffers are in the dtype of the softmax (fp32, or fp64). A GPU multiplies bf16 or fp16 inputs as they are and adds up in
fp32; where no such product exists the head is cast once per call.
"""

import torch
from torch import Tensor

from minillm_ray.objective.gradients import Gradients
from minillm_ray.objective.head import Head


class HeadProducts:
    """The products of one head, V columns wide. Reads its tensors, changes only the buffers it is given."""

    def __init__(self, hidden: Tensor, head: Head, *, vocab_size: int, temperature: float, dtype: torch.dtype) -> None:
        self.vocab_size = vocab_size
        self._hidden = hidden.detach()
        self._dtype = dtype
        self._mixed = hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16) and dtype == torch.float32
        self._precision = {"out_dtype": dtype} if self._mixed else {}
        weight = head.weight.detach()[:vocab_size]
        self._weight = weight if self._mixed else weight.to(dtype)
        self._bias = None if head.bias is None else head.bias.detach()[:vocab_size].to(dtype)
        self._soft_cap = head.soft_cap
        self._scale = head.scale or 1.0
        self._temperature = temperature

    @property
    def has_soft_cap(self) -> bool:
        return self._soft_cap is not None

    @property
    def slope(self) -> float:
        """d softmax argument / d raw logit, less the soft-cap's own derivative."""
        return self._scale / self._temperature

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the logit gradient that enters the backward products."""
        return self._hidden.dtype if self._mixed else self._dtype

    def logits_into(self, out: Tensor, start: int, end: int) -> None:
        """out float [end - start, V] = hidden @ weight.T + bias, the raw logits."""
        torch.mm(self._rows(start, end), self._weight.t(), out=out, **self._precision)
        if self._bias is not None:
            out.add_(self._bias)

    def log_softmax_(self, raw: Tensor, cap_slope: Tensor | None = None) -> None:
        """In place, float [n, V]: raw logits become log-probabilities; cap_slope gets the soft-cap's derivative."""
        if self._soft_cap is None:
            if self.slope != 1.0:
                raw.mul_(self.slope)
        else:
            raw.mul_(self._scale / self._soft_cap).tanh_()
            if cap_slope is not None:
                torch.mul(raw, raw, out=cap_slope)
                cap_slope.neg_().add_(1.0)
            raw.mul_(self._soft_cap / self._temperature)
        torch.log_softmax(raw, dim=-1, out=raw)

    def add_gradients(self, made: Gradients, logit_gradient: Tensor, start: int, end: int) -> None:
        """The two backward products of tokens start..end-1: dh = g W, dW += g.T h, and the bias's sum over tokens.

        logit_gradient [end - start, V] in `gradient_dtype`; sums over tokens are in the softmax's dtype. The chunk that
        holds the last token comes first and is written, not added: clearing a V x d sum is a pass over memory saved.
        """
        is_first = end == self._hidden.shape[0]
        if made.hidden is not None:
            out = made.hidden[start:end]
            if out.dtype == logit_gradient.dtype:
                torch.mm(logit_gradient, self._weight, out=out)
            else:
                out.copy_(torch.mm(logit_gradient, self._weight))
        if made.weight is not None:
            total, rows = made.weight[: self.vocab_size], self._rows(start, end)
            if is_first:
                torch.mm(logit_gradient.t(), rows, out=total, **self._precision)
            else:
                torch.addmm(total, logit_gradient.t(), rows, out=total, **self._precision)
        if made.bias is not None:
            total, summed = made.bias[: self.vocab_size], logit_gradient.sum(0, dtype=self._dtype)
            total.copy_(summed if is_first else total + summed)

    def _rows(self, start: int, end: int) -> Tensor:
        rows = self._hidden[start:end]
        return rows if self._mixed else rows.to(self._dtype)
