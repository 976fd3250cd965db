"""Sampling responses from the student: prompts in, trajectories out, new weights between two calls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from minillm_ray.data.sets import PromptSet
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.generation import GeneratedSequence


class SamplingEngine(Protocol):
    """What a worker asks of an engine (minillm_ray.engines.generation.GenerationEngine)."""

    def add(self, request_id: str, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None: ...
    def step(self) -> list[GeneratedSequence]: ...
    def has_unfinished(self) -> bool: ...
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None: ...


class RolloutWorker:
    """Draws responses. The same weights, prompt and draw give the same response on any replica."""

    def __init__(
        self, engine: SamplingEngine, prompts: Mapping[str, PromptSet], *, max_response_tokens: int, seed: int
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._max_response_tokens = max_response_tokens
        self._seed = seed

    def generate(self, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[Trajectory]:
        """One response to each prompt of `split`, in order. `draw` tells apart several responses to one prompt."""
        prompts = self._prompts[split]
        for position, index in enumerate(prompt_indices):
            self._engine.add(
                str(position),
                prompts.prompt(index).tolist(),
                max_new_tokens=self._max_response_tokens,
                seed=request_seed(self._seed, index, draw),
            )
        finished: dict[int, GeneratedSequence] = {}
        while self._engine.has_unfinished():
            finished.update((int(sequence.request_id), sequence) for sequence in self._engine.step())
        return [
            _trajectory(index, prompts.prompt(index), finished[position])
            for position, index in enumerate(prompt_indices)
        ]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sample with these weights from now on."""
        self._engine.load_weights(named_tensors, version)


def request_seed(run_seed: int, prompt_index: int, draw: int) -> int:
    """The seed of one response, 0 <= seed < 2**63: it depends on nothing but these three numbers."""
    state = np.random.SeedSequence([run_seed, prompt_index, draw]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _trajectory(prompt_index: int, prompt_ids: np.ndarray, sequence: GeneratedSequence) -> Trajectory:
    return Trajectory(
        prompt_index=prompt_index,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
        response_ids=sequence.token_ids,
        sampler_logprob=sequence.logprob,
        behavior_logprob=None,
        weight_version=sequence.weight_version,
        truncated=sequence.truncated,
    )
