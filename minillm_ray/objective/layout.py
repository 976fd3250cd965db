"""The packed batch: the response tokens of B sequences laid end to end, N in all."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each packed token stands in its sequence. Made once per call from cu_seqlens, on the device of the tokens.

    sequence   int64 [N], index of the token's sequence, 0..B-1
    position   int64 [N], slot t of the token in its response, from 0
    length     int64 [N], n of the token's sequence
    """

    num_tokens: int
    num_sequences: int
    sequence: Tensor
    position: Tensor
    length: Tensor

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, *, num_tokens: int, device: torch.device) -> "Layout":
        """cu_seqlens int [B+1], already checked: rises from 0 to num_tokens."""
        bounds = cu_seqlens.to(device=device, dtype=torch.int64)
        lengths = bounds.diff()
        sequence = torch.repeat_interleave(lengths, output_size=num_tokens)
        position = torch.arange(num_tokens, device=device) - bounds[:-1][sequence]
        return cls(num_tokens, lengths.numel(), sequence, position, lengths[sequence])
