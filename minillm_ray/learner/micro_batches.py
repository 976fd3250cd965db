"""From sequences of unequal length to padded micro-batches whose trained slots are packed end to end.

Padding goes to the right of a causal model, so no real token ever attends to it and no mask is needed; which slots
are trained follows from lengths alone, never from token ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """B sequences padded to length L with N trained slots in all.

    input_ids int64 [B, L]; slots int64 [N], index into the flattened [B * L] positions that predict the tokens;
    tokens int64 [N]; cu_seqlens int32 [B + 1]; members: which sequences these are, B of them, in order.
    """

    input_ids: Tensor
    slots: Tensor
    tokens: Tensor
    cu_seqlens: Tensor
    members: tuple[int, ...]

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            self.input_ids.to(device),
            self.slots.to(device),
            self.tokens.to(device),
            self.cu_seqlens.to(device),
            self.members,
        )


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups of sequence numbers, longest first, each at most `max_tokens` positions after padding.

    A single sequence longer than that is a group of its own.
    """
    groups: list[list[int]] = []
    width = 0
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        if groups and (len(groups[-1]) + 1) * width <= max_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
            width = lengths[number]
    return groups


def collate(
    sequences: Sequence[np.ndarray], prompt_lengths: Sequence[int], members: Sequence[int], *, pad_id: int = 0
) -> MicroBatch:
    """The micro-batch of `sequences[k]` for k in `members`: everything after the prompt is trained."""
    chosen = [np.asarray(sequences[k], dtype=np.int64) for k in members]
    width = max(len(sequence) for sequence in chosen)
    input_ids = np.full((len(chosen), width), pad_id, dtype=np.int64)
    slots, tokens, lengths = [], [], []
    for row, (sequence, k) in enumerate(zip(chosen, members, strict=True)):
        input_ids[row, : len(sequence)] = sequence
        prompt_length = prompt_lengths[k]
        slots.append(row * width + np.arange(prompt_length - 1, len(sequence) - 1))
        tokens.append(sequence[prompt_length:])
        lengths.append(len(sequence) - prompt_length)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        slots=torch.from_numpy(np.concatenate(slots)),
        tokens=torch.from_numpy(np.concatenate(tokens)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        members=tuple(members),
    )
