"""The teacher's log-probabilities of a response, a few rows at a time, for the payloads that are made of them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.engines.heads import head_logits
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.objective import Head

_CHUNK_BYTES = 2**24
"""Of one matrix of logits, which is thrown away: 27 rows of a vocabulary of 151,936."""


@torch.no_grad()
def logprob_chunks(
    hidden: Tensor, head: Head, response_ids: npt.NDArray[np.int32], *, temperature: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """log p at `temperature` of each position, not truncated, and log p of the response's own token there.

    hidden: [n, d_t], the states that predict response_ids [n]. Yields float32 ([rows, V], [rows]) on the head's device.
    V is the head's vocab_size: the ids that student and teacher share.
    """
    rows = max(1, _CHUNK_BYTES // (4 * (head.vocab_size or len(head.weight))))
    tokens = torch.from_numpy(response_ids.astype(np.int64))
    for start in range(0, len(hidden), rows):
        logprob = log_probabilities(head_logits(hidden[start : start + rows], head), temperature)
        of_tokens = logprob.gather(1, tokens[start : start + rows, None].to(logprob.device))[:, 0]
        yield logprob, of_tokens
