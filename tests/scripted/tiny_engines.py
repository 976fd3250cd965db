"""Engines over tiny transformers models whose next-token distributions are remembered, so that many draws are cheap.

`TinyStudent` answers as a GenerationEngine does, `TinyTeacher.verify` as a teacher replica does.
"""

from collections.abc import Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.engines.generation import GeneratedSequence, Row
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal, Verdict

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


class Rows:
    """The model's next-token distribution after any prefix, computed once."""

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model = model.eval()
        self._sampling = sampling
        self._rows: dict[tuple[int, ...], tuple[Row, npt.NDArray[np.float64]]] = {}

    def after(self, prefix: Sequence[int]) -> Row:
        return self._after(tuple(prefix))[0]

    def draw(self, prefix: Sequence[int], uniform: float) -> int:
        cumulative = self._after(tuple(prefix))[1]
        return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))

    def forget(self) -> None:
        self._rows.clear()

    def _after(self, prefix: tuple[int, ...]) -> tuple[Row, npt.NDArray[np.float64]]:
        if prefix not in self._rows:
            with torch.no_grad():
                logits = self.model(torch.tensor([prefix])).logits[0, -1]
            sampling = self._sampling
            drawn = log_probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p).numpy()
            truncates = sampling.top_k is not None or sampling.top_p < 1.0
            whole = log_probabilities(logits, sampling.temperature).numpy() if truncates else drawn
            self._rows[prefix] = Row(whole, drawn), np.cumsum(np.exp(drawn.astype(np.float64)))
        return self._rows[prefix]


@dataclass
class _Request:
    prompt: list[int]
    limit: int
    uniforms: Sequence[float]
    keep_rows: frozenset[int]
    token_ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    drawn_from: list[Row] = field(default_factory=list)


class TinyStudent:
    """A sampling engine: one token a step for each running request, drawn by its own seed.

    aborted: ids of requests that were dropped. num_steps: steps so far.
    """

    def __init__(self, model: Any, *, sampling: Sampling | None = None, stop_token_ids: Collection[int] = (0,)) -> None:
        self.rows = Rows(model, sampling or Sampling())
        self.version = 0
        self.aborted: list[str] = []
        self.num_steps = 0
        self._stop_token_ids = frozenset(stop_token_ids)
        self._running: dict[str, _Request] = {}

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
        assert request_id not in self._running
        uniforms = np.random.default_rng(seed).random(first_slot + max_new_tokens)[first_slot:]
        self._running[request_id] = _Request(list(token_ids), max_new_tokens, uniforms, frozenset(keep_rows))

    def step(self) -> list[GeneratedSequence]:
        self.num_steps += 1
        finished = []
        for request_id, request in list(self._running.items()):
            prefix = request.prompt + request.token_ids
            token = self.rows.draw(prefix, request.uniforms[len(request.token_ids)])
            request.drawn_from.append(self.rows.after(prefix))
            request.token_ids.append(token)
            request.versions.append(self.version)
            if token in self._stop_token_ids or len(request.token_ids) == request.limit:
                del self._running[request_id]
                finished.append(_sequence(request_id, request, truncated=token not in self._stop_token_ids))
        return finished

    def has_unfinished(self) -> bool:
        return bool(self._running)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            del self._running[request_id]

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.rows.model.load_state_dict(dict(named_tensors))
        self.rows.forget()
        self.version = version

    async def propose(
        self, token_ids: Sequence[int], *, max_new_tokens: int, seed: int, first_slot: int, keep_rows: Collection[int]
    ) -> GeneratedSequence:
        """One request, alone, at once: what the sampler asks of a student, without a loop around the engine."""
        self.add(
            "alone",
            token_ids,
            max_new_tokens=max_new_tokens,
            seed=seed,
            first_slot=first_slot,
            keep_rows=keep_rows,
        )
        while not (finished := self.step()):
            pass
        return finished[0]


def at_once(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of a coroutine that never waits, as one is that has these engines alone: no event loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


class TinyTeacher:
    """Judges proposals by their thresholds. proposals: all that it was shown."""

    def __init__(self, model: Any, *, sampling: Sampling | None = None) -> None:
        self.rows = Rows(model, sampling or Sampling())
        self.proposals: list[Proposal] = []

    async def verify(self, proposal: Proposal) -> Verdict:
        self.proposals.append(proposal)
        token_ids = proposal.token_ids.tolist()
        stands: list[np.float32] = []
        first = proposal.prompt_length + proposal.start
        for place, threshold in enumerate(proposal.log_threshold, start=first):
            row = self.rows.after(token_ids[:place]).drawn_logprob
            if not row[token_ids[place]] >= threshold:
                return Verdict(np.array(stands, dtype=np.float32), row)
            stands.append(row[token_ids[place]])
        return Verdict(np.array(stands, dtype=np.float32), None)


def _sequence(request_id: str, request: _Request, *, truncated: bool) -> GeneratedSequence:
    tokens = request.token_ids
    logprob = np.array([row.logprob[y] for row, y in zip(request.drawn_from, tokens, strict=True)])
    same = all(row.drawn_logprob is row.logprob for row in request.drawn_from)
    drawn = (
        logprob if same else np.array([row.drawn_logprob[y] for row, y in zip(request.drawn_from, tokens, strict=True)])
    )
    return GeneratedSequence(
        request_id=request_id,
        token_ids=np.array(tokens, dtype=np.int32),
        logprob=logprob,
        drawn_logprob=drawn,
        weight_version=np.array(request.versions, dtype=np.int32),
        truncated=truncated,
        rows={offset: row for offset, row in enumerate(request.drawn_from) if offset in request.keep_rows},
    )
