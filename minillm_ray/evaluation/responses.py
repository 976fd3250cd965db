"""Responses to held-out prompts: one to each prompt and seed, or an error. None is ever left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minillm_ray.config.errors import RunError

TokenIds = npt.NDArray[np.int32]


class Finished(Protocol):
    """What is read of a finished request (minillm_ray.engines.generation.GeneratedSequence)."""

    @property
    def request_id(self) -> str: ...
    @property
    def token_ids(self) -> TokenIds: ...
    @property
    def truncated(self) -> bool: ...


class SamplingEngine(Protocol):
    """What is asked of an engine (minillm_ray.engines.generation.GenerationEngine)."""

    def add(self, request_id: str, token_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None: ...
    def step(self) -> Sequence[Finished]: ...
    def has_unfinished(self) -> bool: ...


@dataclass(frozen=True)
class Response:
    """One response. row: its prompt's place in the file; token_ids int32 [n], the end token included if one was drawn;
    truncated: it reached the token limit."""

    row: int
    seed: int
    token_ids: TokenIds
    truncated: bool


def sample_responses(
    engine: SamplingEngine,
    prompts: Sequence[TokenIds],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    on_finished: Callable[[Response], None] = lambda response: None,
) -> list[Response]:
    """A response to each of the prompts under each of the seeds, by seed, then row.

    A response depends on model, prompt, row and seed alone, not on what is sampled beside it.

    Raises RunError if a response is missing, was given twice, or is empty.
    """
    asked = [(seed, row) for seed in seeds for row in range(len(prompts))]
    for number, (seed, row) in enumerate(asked):
        engine.add(str(number), prompts[row].tolist(), max_new_tokens=max_new_tokens, seed=_request_seed(seed, row))
    finished: dict[int, Response] = {}
    while engine.has_unfinished():
        for sequence in engine.step():
            number = int(sequence.request_id)
            seed, row = asked[number]
            if number in finished or not len(sequence.token_ids):
                raise RunError(f"the engine gave {'two responses' if number in finished else 'no token'} to row {row}")
            finished[number] = Response(row, seed, sequence.token_ids, sequence.truncated)
            on_finished(finished[number])
    if len(finished) != len(asked):
        raise RunError(f"the engine finished {len(finished)} of {len(asked)} responses; no figure is made of a part")
    return [finished[number] for number in range(len(asked))]


def _request_seed(seed: int, row: int) -> int:
    """0 <= seed < 2**63, for vLLM."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] >> np.uint64(1))
