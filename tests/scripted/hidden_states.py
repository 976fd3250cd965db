"""A hidden-state engine with a prefix cache whose rows follow a rule: each depends on all tokens up to its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine

HIDDEN_SIZE = 6


@dataclass
class ScriptedHiddenStateEngine(HiddenStateEngine):
    """Answers all requests of a step at once. requests: (token ids, num_known) of every one ever added, in order."""

    requests: list[tuple[list[int], int]] = field(default_factory=list)
    cached: set[tuple[int, ...]] = field(default_factory=set)
    """Tokens that were computed, each as all tokens up to it."""
    aborted: list[str] = field(default_factory=list)
    waiting: dict[str, tuple[list[int], int]] = field(default_factory=dict)

    @property
    def block_tokens(self) -> int:
        return 4

    def add(self, request_id: str, token_ids: Sequence[int], *, num_known: int = 0) -> None:
        self.requests.append((list(token_ids), num_known))
        self.waiting[request_id] = self.requests[-1]

    def step(self) -> list[HiddenRows]:
        finished = []
        for request_id, (ids, num_known) in self.waiting.items():
            first = 0
            while first < min(num_known, len(ids) - 1) and tuple(ids[: first + 1]) in self.cached:
                first += 1
            self.cached.update(tuple(ids[:end]) for end in range(1, len(ids) + 1))
            finished.append(HiddenRows(request_id, expected_rows(ids)[first:], first))
        self.waiting = {}
        return finished[::-1]

    def has_unfinished(self) -> bool:
        return bool(self.waiting)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.waiting.pop(request_id, None)


def expected_rows(token_ids: Sequence[int]) -> Tensor:
    """[L, d]: standard normal numbers drawn from a seed that the tokens up to each position make."""
    rows = []
    for end in range(1, len(token_ids) + 1):
        digest = hashlib.sha256(repr([int(token) for token in token_ids[:end]]).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        rows.append(torch.randn(HIDDEN_SIZE, generator=generator))
    return torch.stack(rows)
