"""Which proposed tokens stand, by the teacher's hidden states and its head. Pure, but for the head's device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.engines.heads import head_logits
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.objective import Head

_CHUNK_BYTES = 2**26
"""Of one matrix of logits: a long proposal over a large vocabulary takes several, and fits beside an engine."""


@dataclass(frozen=True)
class Sampling:
    """How the teacher's distribution is drawn from, by the terms of minillm_ray.engines.truncation."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Judge:
    """The teacher's head, and how its distribution is drawn from."""

    def __init__(self, head: Head, sampling: Sampling) -> None:
        self._head = head
        self._sampling = sampling

    def __call__(self, asked: Sequence[tuple[Tensor, Proposal]]) -> list[Verdict]:
        """A verdict on each proposal, by the hidden states [n - start, d_t] of its proposed slots.

        The slots of all of them go through the head together: a product of few rows costs nearly as much as one of
        many, since it reads the whole head. Raises FloatingPointError for a teacher that yields NaN.
        """
        hidden = torch.cat([rows for rows, _ in asked])
        ends = np.cumsum([len(rows) for rows, _ in asked])
        proposed = [proposal.token_ids[proposal.prompt_length + proposal.start :] for _, proposal in asked]
        token_ids = torch.from_numpy(np.concatenate(proposed).astype(np.int64))
        threshold = torch.from_numpy(np.concatenate([proposal.log_threshold for _, proposal in asked]))
        logprob = torch.empty(len(hidden))
        fallen: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}
        for slots in torch.arange(len(hidden)).split(max(1, _CHUNK_BYTES // (4 * self._num_columns))):
            rows = self._log_probabilities(hidden[slots])
            logprob[slots] = rows.gather(1, token_ids[slots].to(rows.device)[:, None])[:, 0].cpu()
            for slot in slots[~(logprob[slots] >= threshold[slots])].tolist():
                place = int(np.searchsorted(ends, slot, side="right"))
                if place not in fallen:
                    fallen[place] = slot, rows[slot - int(slots[0])].cpu().numpy().copy()
        verdicts = []
        for place, end in enumerate(ends.tolist()):
            begin = end - len(asked[place][0])
            end, row = fallen.get(place, (end, None))
            verdicts.append(_verdict(logprob[begin:end].numpy(), row))
        return verdicts

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        """float32 [n, V], of hidden states [n, d_t]: the teacher's distributions as they are drawn from."""
        sampling = self._sampling
        return log_probabilities(head_logits(hidden, self._head), sampling.temperature, sampling.top_k, sampling.top_p)

    @property
    def _num_columns(self) -> int:
        return self._head.vocab_size or len(self._head.weight)


def _verdict(stands: npt.NDArray[np.float32], row: npt.NDArray[np.float32] | None) -> Verdict:
    if np.isnan(stands).any() or (row is not None and np.isnan(row).any()):
        raise FloatingPointError("the teacher's log-probabilities are not numbers: its weights or its dtype are wrong")
    return Verdict(stands, row)
