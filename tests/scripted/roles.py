"""Engines whose answers follow a rule, and roles that write down what they are asked, in order."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from minillm_ray.engines.generation import GeneratedSequence


@dataclass
class ScriptedSamplingEngine:
    """Answers request k of those that run together with k + 1 tokens, one a step each; the shortest is done first.

    Token t of a response is (seed + t) % 1000; each token keeps the version that was loaded when it was drawn.
    """

    requests: list[tuple[str, list[int], int, int]] = field(default_factory=list)
    """(request id, prompt, limit, seed) of every request ever added, in order."""
    loaded: list[tuple[int, list[str]]] = field(default_factory=list)
    """(version, names of the tensors) of every load, in order."""
    version: int = 0
    running: dict[str, tuple[int, int, list[int]]] = field(default_factory=dict)
    """Request id -> (seed, length, version of each token so far)."""

    def add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        seed: int,
        first_slot: int = 0,
        keep_rows: Collection[int] = (),
    ) -> None:
        assert request_id not in self.running and first_slot == 0 and not keep_rows
        self.requests.append((request_id, list(token_ids), max_new_tokens, seed))
        self.running[request_id] = (seed, min(len(self.running) + 1, max_new_tokens), [])

    def step(self) -> list[GeneratedSequence]:
        finished = []
        for request_id, (seed, length, versions) in list(self.running.items()):
            versions.append(self.version)
            if len(versions) == length:
                del self.running[request_id]
                finished.append(_sequence(request_id, seed, versions))
        return finished[::-1]

    def has_unfinished(self) -> bool:
        return bool(self.running)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            del self.running[request_id]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.loaded.append((version, [name for name, _ in named_tensors]))
        self.version = version


def _sequence(request_id: str, seed: int, versions: list[int]) -> GeneratedSequence:
    count = len(versions)
    logprob = -np.arange(1, count + 1, dtype=np.float32)
    return GeneratedSequence(
        request_id=request_id,
        token_ids=np.array([(seed + t) % 1000 for t in range(count)], dtype=np.int32),
        logprob=logprob,
        drawn_logprob=logprob,
        weight_version=np.array(versions, dtype=np.int32),
        truncated=count % 2 == 0,
        rows={},
    )


class ScriptedRoles:
    """Rollout, teacher, learner and plain text in one. References are texts that say where they come from.

    events: the name of every call, in order. calls: the same with their arguments.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.calls: list[tuple[Any, ...]] = []
        self.published = 0
        self.pulled = 0
        self.num_steps = 0
        self.num_texts = 0

    def generate(self, split: str, prompt_indices: Sequence[int], *, draw: int) -> list[str]:
        self._note("generate", split, list(prompt_indices), draw)
        return [f"{split}/{index}/{draw}/v{self.pulled}" for index in prompt_indices]

    def pull(self, manifest: str, buffers: Sequence[str], version: int) -> None:
        self._note("pull", manifest, list(buffers), version)
        self.pulled = version

    def score(self, trajectories: Sequence[str]) -> tuple[list[str], int]:
        self._note("score", list(trajectories))
        return [f"hidden of {reference}" for reference in trajectories], 10 * len(trajectories)

    def step(
        self, trajectories: Sequence[str], payloads: Sequence[str], texts: Sequence[str], text_payloads: Sequence[str]
    ) -> list[str]:
        self._note("step", list(trajectories), list(payloads), list(texts), list(text_payloads))
        self.num_steps += 1
        return [f"report {self.num_steps}"]

    def next(self) -> tuple[list[str], list[str]]:
        self._note("text")
        self.num_texts += 1
        return [f"text {self.num_texts}"], [f"hidden of text {self.num_texts}"]

    def publish(self, version: int) -> tuple[str, list[str]]:
        self._note("publish", version)
        self.published = version
        return f"manifest {version}", [f"buffer {version}"]

    def _note(self, event: str, *arguments: Any) -> None:
        self.events.append(event)
        self.calls.append((event, *arguments))
