"""Roles as Ray actors that follow a script: no model, a set time a token, faults on demand. For scheduling and chaos.

The learner's "weights" are the list of (prompt, draw) pairs that it has trained, in order, so that a test can see what
was trained twice or never, and whether a restored state is the state that was saved. Nothing here imports torch, so
that an actor starts in a moment.
"""

import asyncio
import json
import os
import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from minillm_ray.checkpoint.files import CheckpointError, FileRecord, write_file
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.remote import Beat, PeerUnavailable


@dataclass(frozen=True)
class Script:
    """What an actor does, and how long it takes.

    tokens: of every response; slots: responses that one sampler draws at a time, the others wait; jitter: by how much
    of its time a response may be faster or slower. score_seconds, step_seconds: of one call. payload_bytes: of each
    score beside its name. state_bytes: of a checkpoint beside the list.
    """

    tokens: int = 4
    token_seconds: float = 0.0
    slots: int = 1000
    jitter: float = 0.5
    score_seconds: float = 0.0
    step_seconds: float = 0.0
    ready_seconds: float = 0.0
    payload_bytes: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class ScriptedReport:
    """Of a step: what it trained, and the versions that each was begun with."""

    versions: list[int]
    given: list[tuple[int, int]]


@dataclass(frozen=True)
class ScriptedLoss:
    """Looks like minillm_ray.learner.actor.LostInputs."""

    lost_places: tuple[int, ...]
    num_lost: int


@ray.remote(concurrency_groups={"beat": 1}, num_cpus=0, max_concurrency=1000)
class ScriptedRollout:
    """Draws `tokens` tokens, each at the version that is loaded then; asks the teacher once in the middle."""

    def __init__(self, script: Script) -> None:
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._begin(script)

    async def reset(self, script: Script) -> None:
        """As if it were new."""
        await self.abandon(list(self._tasks.values()))
        self._begin(script)

    def _begin(self, script: Script) -> None:
        self._script = script
        self._slots = asyncio.Semaphore(script.slots)
        self._version = 0

    async def ready(self) -> int:
        await asyncio.sleep(self._script.ready_seconds)
        return os.getpid()

    @ray.method(concurrency_group="beat")
    async def ping(self) -> Beat:
        return Beat(0.0)

    async def respond(
        self, split: str, prompt_index: int, draw: int, teacher: Any, session: str, together: object
    ) -> tuple[int, Trajectory]:
        assert self._version > 0, "a stale replica was asked for a response"
        task = asyncio.ensure_future(self._draw(prompt_index, draw, teacher, session))
        self._tasks[task] = session
        try:
            return self._script.tokens, await task
        finally:
            del self._tasks[task]

    async def pull(self, manifest: dict[str, Any], *buffers: bytes) -> int:
        self._version = manifest["version"]
        return self._version

    async def abandon(self, sessions: list[str]) -> None:
        for task, session in self._tasks.items():
            if session in sessions:
                task.cancel()

    async def _draw(self, prompt_index: int, draw: int, teacher: Any, session: str) -> Trajectory:
        script = self._script
        pace = random.Random(f"{prompt_index} {draw}").uniform(1 - script.jitter, 1 + script.jitter)
        async with self._slots:
            versions = [self._version]
            await asyncio.sleep(script.tokens // 2 * script.token_seconds * pace)
            if teacher is not None:
                try:
                    await asyncio.wait_for(teacher.extend.remote(session), 60)
                except Exception as error:
                    raise PeerUnavailable(str(error)) from None
            await asyncio.sleep((script.tokens - script.tokens // 2) * script.token_seconds * pace)
            versions += [self._version] * (script.tokens - 1)
        return Trajectory(
            prompt_index=prompt_index,
            prompt_ids=np.array([draw], np.int32),
            response_ids=np.zeros(len(versions), np.int32),
            sampler_logprob=np.zeros(len(versions), np.float32),
            behavior_logprob=None,
            weight_version=np.array(versions, np.int32),
            truncated=False,
        )


@ray.remote(concurrency_groups={"beat": 1}, num_cpus=0, max_concurrency=1000)
class ScriptedTeacher:
    """Scores a trajectory by naming it."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def reset(self, script: Script) -> None:
        """As if it were new."""
        self._script = script

    async def ready(self) -> int:
        await asyncio.sleep(self._script.ready_seconds)
        return os.getpid()

    @ray.method(concurrency_group="beat")
    async def ping(self) -> Beat:
        return Beat(0.0)

    async def extend(self, session: str) -> None: ...

    async def score(self, trajectory: Trajectory, session: str | None, exact: bool) -> tuple[int, Any]:
        await asyncio.sleep(self._script.score_seconds)
        size = self._script.payload_bytes
        return size, (trajectory.prompt_index, int(trajectory.prompt_ids[0]), np.zeros(size, np.uint8))

    async def forget(self, session: str) -> None: ...


@ray.remote(concurrency_groups={"beat": 1, "files": 1}, num_cpus=0)
class ScriptedRank:
    """The only rank: it trains by writing down what it was given."""

    def __init__(self, script: Script) -> None:
        self.reset(script)

    def reset(self, script: Script) -> None:
        """As if it were new."""
        self._script = script
        self._trained: list[tuple[int, int]] = []
        self._files: list[FileRecord] | CheckpointError = []

    def ready(self) -> int:
        time.sleep(self._script.ready_seconds)
        return os.getpid()

    @ray.method(concurrency_group="beat")
    def ping(self) -> Beat:
        return Beat(0.0)

    def address(self) -> str:
        return "nowhere:0"

    def join(self, address: str, timeout_seconds: float) -> int:
        return 1

    def load(self, folder: Path) -> None:
        self._trained = [(prompt, draw) for prompt, draw in json.loads((folder / "rank.json").read_text())]

    def snapshot(self, folder: Path) -> None:
        try:
            self._files = [
                write_file(folder, "rank.json", json.dumps(self._trained)),
                write_file(folder, "rank.bin", [bytes(self._script.state_bytes)]),
            ]
        except CheckpointError as error:
            self._files = error

    @ray.method(concurrency_group="files")
    def written(self) -> list[FileRecord] | CheckpointError:
        return self._files

    def publish(self, version: int) -> tuple[bytes, dict[str, int]]:
        return b"weights", {"version": version}

    def step(
        self, trajectories: list[Any], payloads: list[Any], texts: list[Any], text_payloads: list[Any], seconds: float
    ) -> ScriptedReport | ScriptedLoss:
        time.sleep(self._script.step_seconds)
        fetched, lost = [], []
        for place, pair in enumerate(zip(trajectories, payloads, strict=True)):
            try:
                fetched.append(ray.get(list(pair), timeout=5))
            except ray.exceptions.RayError:
                lost.append(place)
        if lost:
            return ScriptedLoss(tuple(lost), len(lost))
        given = [(trajectory.prompt_index, int(trajectory.prompt_ids[0])) for trajectory, _ in fetched]
        assert given == [payload[:2] for _, payload in fetched], "payloads of other responses"
        self._trained += given
        return ScriptedReport([int(trajectory.weight_version[0]) for trajectory, _ in fetched], given)

    def trained(self) -> list[tuple[int, int]]:
        """Its weights."""
        return self._trained

    def limit_files(self, num_bytes: int | None) -> None:
        """As a full disk: no file may grow beyond this. None: no limit."""
        size = resource.RLIM_INFINITY if num_bytes is None else num_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
