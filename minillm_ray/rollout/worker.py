"""Sampling responses from the student, alone or mixed with the teacher: prompts in, trajectories out."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from minillm_ray.data.sets import PromptSet
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.generation import GeneratedSequence
from minillm_ray.engines.loop import EngineLoop, Together
from minillm_ray.mixture.exchange import Verify
from minillm_ray.mixture.risk import RiskyCoins
from minillm_ray.mixture.sampler import MixtureSettings, SamplingCounts, sample


class SamplingEngine(Protocol):
    """What a worker asks of an engine (minillm_ray.engines.generation.GenerationEngine)."""

    def add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        seed: int,
        first_slot: int = 0,
        keep_rows: Collection[int] = (),
    ) -> None: ...
    def step(self) -> list[GeneratedSequence]: ...
    def has_unfinished(self) -> bool: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None: ...
    def join_weight_group(self, init_info: dict[str, Any]) -> None: ...
    def receive_weights(self, update_info: dict[str, Any], version: int) -> None: ...


class RolloutWorker:
    """Draws responses. The same weights, prompt and draw give the same response on any replica.

    mixture: how responses that come with a `verify` are drawn. None where none will.
    """

    def __init__(
        self,
        loop: EngineLoop[SamplingEngine, GeneratedSequence],
        prompts: Mapping[str, PromptSet],
        *,
        max_response_tokens: int,
        seed: int,
        mixture: MixtureSettings | None = None,
    ) -> None:
        self._loop = loop
        self._prompts = prompts
        self._max_response_tokens = max_response_tokens
        self._seed = seed
        self._mixture = mixture
        self._risk = RiskyCoins()

    async def respond(
        self,
        split: str,
        prompt_index: int,
        *,
        draw: int,
        verify: Verify | None = None,
        together: Together | None = None,
    ) -> tuple[Trajectory, SamplingCounts]:
        """One response to one prompt of `split`, and what it cost. `draw` tells apart several responses to one prompt.

        verify: the teacher to mix with; None samples from the student alone. together: responses that are begun in
        one go; what is drawn does not depend on it. Where the coroutine is cancelled, the engine drops the request.
        """
        prompt_ids = self._prompts[split].prompt(prompt_index)
        seed = request_seed(self._seed, prompt_index, draw)
        if verify is None:
            return await self._alone(prompt_index, prompt_ids, seed, together)
        if self._mixture is None:
            raise ValueError("a response is to be mixed with a teacher, but this worker has no mixture settings")
        propose = _Propose(self._loop, together)
        mixed = await sample(
            prompt_ids.tolist(),
            self._mixture,
            propose=propose,
            verify=verify,
            seed=seed,
            max_response_tokens=self._max_response_tokens,
            risk=self._risk,
        )
        trajectory = Trajectory(
            prompt_index=prompt_index,
            prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
            response_ids=mixed.response_ids,
            sampler_logprob=mixed.sampler_logprob,
            behavior_logprob=mixed.behavior_logprob,
            weight_version=mixed.weight_version,
            truncated=mixed.truncated,
        )
        return trajectory, mixed.counts

    async def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sample with these weights from the next step on, also what is under way."""
        await self._loop.command(lambda engine: engine.load_weights(named_tensors, version))

    async def _alone(
        self, prompt_index: int, prompt_ids: npt.NDArray[np.int32], seed: int, together: Together | None
    ) -> tuple[Trajectory, SamplingCounts]:
        propose = _Propose(self._loop, together)
        drawn = await propose(
            prompt_ids.tolist(), max_new_tokens=self._max_response_tokens, seed=seed, first_slot=0, keep_rows=()
        )
        untruncated = drawn.drawn_logprob is drawn.logprob
        num_tokens = len(drawn.token_ids)
        trajectory = Trajectory(
            prompt_index=prompt_index,
            prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
            response_ids=drawn.token_ids,
            sampler_logprob=drawn.logprob,
            behavior_logprob=None if untruncated else drawn.drawn_logprob,
            weight_version=drawn.weight_version,
            truncated=drawn.truncated,
        )
        return trajectory, SamplingCounts(num_tokens, 0, 0, num_tokens, 1, 0)


class _Propose:
    """The student's side of one response. Its first request may enter the engine together with those of others."""

    def __init__(self, loop: EngineLoop[SamplingEngine, GeneratedSequence], together: Together | None) -> None:
        self._loop = loop
        self._together = together

    async def __call__(
        self, token_ids: Sequence[int], *, max_new_tokens: int, seed: int, first_slot: int, keep_rows: Collection[int]
    ) -> GeneratedSequence:
        def add(engine: SamplingEngine, request_id: str) -> None:
            engine.add(
                request_id,
                token_ids,
                max_new_tokens=max_new_tokens,
                seed=seed,
                first_slot=first_slot,
                keep_rows=keep_rows,
            )

        together, self._together = self._together, None
        return await self._loop.request(add, together=together)


def respond_to_all(worker: RolloutWorker, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[Trajectory]:
    """The student's responses, in order, where there is no event loop: it runs one of its own."""

    async def respond() -> list[tuple[Trajectory, SamplingCounts]]:
        return await asyncio.gather(
            *(
                worker.respond(split, index, draw=draw, together=Together("all", len(prompt_indices), place))
                for place, index in enumerate(prompt_indices)
            )
        )

    return [trajectory for trajectory, _ in asyncio.run(respond())]


def request_seed(run_seed: int, prompt_index: int, draw: int) -> int:
    """The seed of one response, 0 <= seed < 2**63: it depends on nothing but these three numbers."""
    state = np.random.SeedSequence([run_seed, prompt_index, draw]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
