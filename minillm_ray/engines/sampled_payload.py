"""The teacher's log-probability of a response's own tokens as it travels between actors, from its hidden states."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.data.trajectory import SampledPayload
from minillm_ray.engines.payload_logprobs import logprob_chunks
from minillm_ray.objective import Head


def encode_sampled(
    hidden: Tensor, head: Head, response_ids: npt.NDArray[np.int32], *, temperature: float
) -> SampledPayload:
    """The payload of a response of n >= 1 tokens. hidden: [n, d_t], the states that predict response_ids [n]."""
    chunks = logprob_chunks(hidden, head, response_ids, temperature=temperature)
    return SampledPayload(torch.cat([of_tokens for _, of_tokens in chunks]).cpu().numpy())
