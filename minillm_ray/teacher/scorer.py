"""What the teacher says of a response: its final hidden states where each token is predicted."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.engines.hidden_payload import encode_hidden


class HiddenStateEngine(Protocol):
    """What a scorer asks of an engine (minillm_ray.engines.pooling.PoolingEngine)."""

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]: ...


class TeacherScorer:
    """Same tokens in, same numbers out."""

    def __init__(self, engine: HiddenStateEngine, *, dtype: torch.dtype) -> None:
        self._engine = engine
        self._dtype = dtype

    def score(self, trajectories: Sequence[Trajectory]) -> list[HiddenPayload]:
        """For each response of n tokens the hidden states [n, d_t] of the positions that predict them."""
        # The last token predicts nothing that is trained, so the engine never sees it.
        hidden = self._engine.hidden_states([trajectory.token_ids[:-1].tolist() for trajectory in trajectories])
        return [
            encode_hidden(rows[len(trajectory.prompt_ids) - 1 :], self._dtype)
            for rows, trajectory in zip(hidden, trajectories, strict=True)
        ]
