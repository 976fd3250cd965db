"""Hidden states as they travel between actors: numpy has no bfloat16, so its bits go as uint16."""

import numpy as np
import torch
from torch import Tensor

from minillm_ray.data.trajectory import HiddenPayload


def encode_hidden(hidden: Tensor, dtype: torch.dtype) -> HiddenPayload:
    """A payload that holds [n, d_t] hidden states in `dtype`, float32 or bfloat16."""
    rows = hidden.detach().to(device="cpu", dtype=dtype).contiguous()
    if dtype == torch.bfloat16:
        return HiddenPayload(rows.view(torch.uint16).numpy().copy())
    return HiddenPayload(rows.numpy().copy())


def decode_hidden(payload: HiddenPayload) -> Tensor:
    """float32 or bfloat16 [n, d_t], a copy of its own."""
    rows = torch.from_numpy(np.array(payload.data))
    return rows.view(torch.bfloat16) if payload.data.dtype == np.uint16 else rows
