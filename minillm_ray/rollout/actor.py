"""The Ray actor of a rollout replica: builds a RolloutWorker around a vLLM engine and forwards to it.

It is asynchronous: each response is a call of its own, so that it comes back when it is done, and dies alone.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from minillm_ray.data.sets import PromptSet
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.generation import EngineSettings, GeneratedSequence, GenerationEngine
from minillm_ray.engines.loop import EngineLoop, Together
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.mixture.sampler import MixtureSettings, SamplingCounts
from minillm_ray.remote import Beat, PeerFailed, PeerUnavailable, describe
from minillm_ray.rollout.verdicts import Verdicts
from minillm_ray.rollout.worker import RolloutWorker, SamplingEngine
from minillm_ray.telemetry.actor_logs import redirect_output
from minillm_ray.weights.buffers import unpack
from minillm_ray.weights.nccl import WeightOffer
from minillm_ray.weights.transport import Published


@dataclass(frozen=True)
class SamplingSettings:
    """How the student draws. mixture: None where responses are never mixed with the teacher's."""

    temperature: float
    top_k: int | None
    top_p: float
    stop_token_ids: tuple[int, ...]
    max_response_tokens: int
    seed: int
    mixture: MixtureSettings | None


@ray.remote(concurrency_groups={"beat": 1})
class RolloutActor:
    """Process boundary of one rollout replica. verdict_seconds: deadline for a teacher's answer."""

    def __init__(
        self,
        engine: EngineSettings,
        sampling: SamplingSettings,
        train: PromptSet,
        held_out: PromptSet,
        *,
        verdict_seconds: float,
        log_file: Path,
    ) -> None:
        redirect_output(log_file)
        self._verdict_seconds = verdict_seconds
        self._verdicts = Verdicts(self._extend)
        self._tasks: dict[asyncio.Task[Any], str] = {}
        """What is being drawn, by its session."""
        self._loop: EngineLoop[SamplingEngine, GeneratedSequence] = EngineLoop(
            lambda: GenerationEngine(
                engine,
                temperature=sampling.temperature,
                stop_token_ids=sampling.stop_token_ids,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
            ),
            name="student",
        )
        self._worker = RolloutWorker(
            self._loop,
            {"train": train, "held_out": held_out},
            max_response_tokens=sampling.max_response_tokens,
            seed=sampling.seed,
            mixture=sampling.mixture,
        )

    async def ready(self) -> None:
        """Answers once the engine is loaded."""
        await self._loop.ready()

    @ray.method(concurrency_group="beat")
    async def ping(self) -> Beat:
        return Beat(self._loop.seconds_since_progress, self._loop.busy_seconds)

    async def respond(
        self, split: str, prompt_index: int, draw: int, teacher: Any, session: str, together: Together | None
    ) -> tuple[SamplingCounts, Trajectory]:
        """One response, and before it what it cost: 2 returns. teacher: an actor handle, None for no mixture.

        Raises PeerUnavailable where the teacher does not answer, PeerFailed where it answers with an exception.
        """
        verify = None if teacher is None else partial(self._verdicts.ask, teacher, session)
        task = asyncio.ensure_future(
            self._worker.respond(split, prompt_index, draw=draw, verify=verify, together=together)
        )
        self._tasks[task] = session
        try:
            trajectory, counts = await task
        finally:
            del self._tasks[task]
        return counts, trajectory

    async def pull(self, published: Published, *buffers: np.ndarray) -> int:
        """Load a published version, checked against its hashes, or have it sent. Returns the version.

        Raises WeightMismatchError for other bytes than were published; what failed where the sender could not send it.
        """
        if isinstance(published, WeightOffer):
            me = ray.get_runtime_context()
            return await published.sender.send_weights.remote(me.get_actor_id(), me.current_actor)
        # Hashed in another thread: the engine goes on stepping, and this one goes on answering.
        tensors = await asyncio.to_thread(unpack, published, buffers)
        await self._worker.load_weights(tensors, published.version)
        return published.version

    async def join_weight_group(self, init_info: dict[str, Any]) -> None:
        """Called by the sender of a WeightOffer: meet it."""
        await self._loop.command(lambda engine: engine.join_weight_group(init_info))

    async def receive_weights(self, update_info: dict[str, Any], version: int) -> None:
        """Likewise: load what it sends now, between two steps."""
        await self._loop.command(lambda engine: engine.receive_weights(update_info, version))

    async def abandon(self, sessions: list[str]) -> None:
        """Drop these responses. A later one may have come before this call, since calls wait side by side."""
        for task, session in self._tasks.items():
            if session in sessions:
                task.cancel()

    async def _extend(self, teacher: Any, proposals: list[tuple[str, Proposal]]) -> list[Verdict]:
        try:
            return await asyncio.wait_for(teacher.extend.remote(proposals), self._verdict_seconds)
        except RayTaskError as error:
            raise PeerFailed(describe(error)) from None
        except (RayError, TimeoutError) as error:
            sessions = ", ".join(session for session, _ in proposals)
            raise PeerUnavailable(f"the teacher of {sessions} gave no verdict: {error}") from None
