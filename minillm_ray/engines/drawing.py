"""Draws the tokens of a vLLM engine: temperature, truncation, one uniform number a token; and records what it saw.

    raw logits [B, V + padding] --> log q [B, V] --> truncated --> token [B], by the uniform of its place
                                        |                |
                                        +----------------+--> a record for each request

Slot t of a response is drawn by number t of its own seed, whatever else is in the batch, however its prompt was read
and however often it was preempted. vLLM is left with the argmax: a generator for each request, as its own seeds make,
costs a pass over the vocabulary each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from minillm_ray.engines.truncation import draw, log_probabilities

SECTION = "minillm_ray"
"""Of vLLM's `additional_config`: vocabulary_size, temperature, top_k, top_p."""


@dataclass
class Record:
    """What was seen of one request, by output offset.

    logprob: log q of the drawn token; drawn_logprob: the same truncated and renormalised; rows: log q of the whole
    vocabulary, float32 [V]; drawn_rows: the same truncated. Where nothing is truncated, neither `drawn_` has anything.
    """

    logprob: dict[int, float] = field(default_factory=dict)
    drawn_logprob: dict[int, float] = field(default_factory=dict)
    rows: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    drawn_rows: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)


_RECORDS: dict[str, Record] = {}
"""Of this process, where the model runs: the engine's own, or a worker's under tensor parallelism."""


def take_records(worker: Any, keys: Sequence[str]) -> dict[str, Record]:
    """Remove the records of finished or aborted requests and return those that were made. For `collective_rpc`."""
    return {key: _RECORDS.pop(key) for key in keys if key in _RECORDS}


@dataclass(frozen=True)
class _Request:
    """In the batch. uniforms: float64 [max_tokens]; output_ids: vLLM's own list, which grows with each token."""

    key: str
    uniforms: npt.NDArray[np.float64]
    keep_rows: frozenset[int]
    output_ids: list[int]

    @property
    def offset(self) -> int:
        """Of the token to be drawn."""
        return len(self.output_ids)


@dataclass(frozen=True)
class _Drawn:
    """tokens: int64 [B]; logprob: log q of each, before truncation, float [B]; scaled: logits over temperature, float32
    [B, V]; truncated: log-probabilities float32 [B, V], or None where nothing is cut."""

    tokens: Tensor
    logprob: Tensor
    scaled: Tensor
    truncated: Tensor | None

    def row(self, place: int) -> npt.NDArray[np.float32]:
        """log q of the whole vocabulary at one place of the batch."""
        return self.scaled[place].log_softmax(-1).cpu().numpy()


class DrawTokens(LogitsProcessor):
    """Reads the engine's settings from `additional_config`, and of each request what `GenerationEngine.add` says."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        settings = vllm_config.additional_config[SECTION]
        self._vocabulary_size: int = settings["vocabulary_size"]
        self._temperature: float = settings["temperature"]
        self._truncation: tuple[int | None, float] = (settings["top_k"], settings["top_p"])
        self._truncates = bool(settings["top_k"]) or settings["top_p"] < 1.0
        self._requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        return False  # so that it is never skipped; it comes last, after every other processor of its kind

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, self._new_request)

    def _new_request(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Request | None:
        arguments = params.extra_args or {}
        if "record" not in arguments:
            return None  # vLLM's own, at start-up
        uniforms = np.random.default_rng(arguments["seed"]).random(arguments["first_slot"] + params.max_tokens)
        return _Request(
            key=arguments["record"],
            uniforms=uniforms[arguments["first_slot"] :],
            keep_rows=frozenset(arguments["keep_rows"]),
            output_ids=output_ids,
        )

    def apply(self, logits: Tensor) -> Tensor:
        """Draw, record, and leave each drawn token as the one that the argmax finds.

        A step whose token is dropped (a prefill in parts, a request that is preempted) is seen again at the same
        offset: the last one counts, since its token stays.
        """
        if not self._requests:
            return logits
        uniforms = np.zeros(len(logits))
        for place, request in self._requests.items():
            uniforms[place] = request.uniforms[request.offset]
        seen = self._draw(logits[:, : self._vocabulary_size], torch.from_numpy(uniforms).to(logits.device))
        self._record(seen)
        return logits.scatter_(1, seen.tokens[:, None], float("inf"))

    def _draw(self, logits: Tensor, uniforms: Tensor) -> _Drawn:
        scaled = logits.float()
        if self._temperature != 1.0:
            scaled = scaled / self._temperature
        if self._truncates:
            truncated = log_probabilities(logits, self._temperature, *self._truncation)
            tokens = draw(truncated.exp(), uniforms)
            return _Drawn(tokens, _at(scaled, tokens) - scaled.logsumexp(-1), scaled, truncated)
        probability = scaled.softmax(-1)
        tokens = draw(probability, uniforms)
        return _Drawn(tokens, _at(probability, tokens).log(), scaled, None)

    def _record(self, seen: _Drawn) -> None:
        logprob = seen.logprob.tolist()
        drawn_logprob = [] if seen.truncated is None else _at(seen.truncated, seen.tokens).tolist()
        for place, request in self._requests.items():
            record = _RECORDS.setdefault(request.key, Record())
            offset = request.offset
            record.logprob[offset] = logprob[place]
            if seen.truncated is not None:
                record.drawn_logprob[offset] = drawn_logprob[place]
            if offset in request.keep_rows:
                record.rows[offset] = seen.row(place)
                if seen.truncated is not None:
                    # Not a view, which would keep the other requests' rows alive.
                    record.drawn_rows[offset] = seen.truncated[place].cpu().numpy().copy()


def _at(rows: Tensor, tokens: Tensor) -> Tensor:
    """float [B]: of each row [V] the number at its token."""
    return rows.gather(1, tokens[:, None])[:, 0]
