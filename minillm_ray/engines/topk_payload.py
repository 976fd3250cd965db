"""The teacher's most probable tokens as they travel between actors, from its hidden states."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.data.trajectory import TopKPayload
from minillm_ray.engines.payload_logprobs import logprob_chunks
from minillm_ray.objective import Head


@torch.no_grad()
def encode_topk(
    hidden: Tensor, head: Head, response_ids: npt.NDArray[np.int32], *, temperature: float, k: int
) -> TopKPayload:
    """The payload of a response of n >= 1 tokens. hidden: [n, d_t], the states that predict response_ids [n].

    k: at most as many ids a token; the whole vocabulary where it is smaller.
    """
    parts: list[tuple[Tensor, ...]] = []
    for logprob, of_tokens in logprob_chunks(hidden, head, response_ids, temperature=temperature):
        best = logprob.topk(min(k, logprob.shape[1]), dim=1)
        # The rest is summed by itself: 1 minus the sum of the k would be rounding where they hold nearly everything.
        rest = logprob.scatter(1, best.indices, -torch.inf).logsumexp(1)
        parts.append((best.indices.int(), best.values, rest, of_tokens))
    ids, values, rest, of_tokens = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return TopKPayload(ids=ids, logprob=values, tail_logprob=rest, token_logprob=of_tokens)
