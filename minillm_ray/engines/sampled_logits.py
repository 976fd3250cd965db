"""The last step before vLLM draws a token: no padding rows, temperature, truncation; and whole rows kept where asked.

    raw logits [B, V + padding] --> what is sampled [B, V + padding], -inf where nothing may be drawn
                        |
                        +--> records of the requests that asked for one

vLLM's own temperature, top-k and top-p stay off, so that the student and the teacher are truncated by one function and
the rows that are kept are those that were sampled from. Where the vocabulary has no padding and nothing is truncated
or kept, a step costs one division.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from minillm_ray.engines.truncation import log_probabilities

SECTION = "minillm_ray"
"""Of vLLM's `additional_config`: vocabulary_size, temperature, top_k, top_p."""


@dataclass
class Record:
    """What was seen of one request, by output offset.

    rows: log q of the whole vocabulary, float32 [V]; drawn_rows: the same truncated and renormalised, empty where
    nothing is truncated; log_mass: log of the mass that truncation left, of every offset where it is on.
    """

    rows: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    drawn_rows: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    log_mass: dict[int, float] = field(default_factory=dict)


_RECORDS: dict[str, Record] = {}
"""Of this process, where the model runs: the engine's own, or a worker's under tensor parallelism."""


def take_records(worker: Any, keys: Sequence[str]) -> dict[str, Record]:
    """Remove the records of finished or aborted requests and return those that were made. For `collective_rpc`."""
    return {key: _RECORDS.pop(key) for key in keys if key in _RECORDS}


@dataclass(frozen=True)
class _Recorded:
    """A request in the batch. output_ids: vLLM's own list, which grows with each token."""

    key: str
    keep_rows: frozenset[int]
    output_ids: list[int]


class SampledLogits(LogitsProcessor):
    """Reads the engine's settings from `additional_config`, and of each request `record` and `keep_rows`."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        settings = vllm_config.additional_config[SECTION]
        self._vocabulary_size: int = settings["vocabulary_size"]
        self._temperature: float = settings["temperature"]
        self._truncation: tuple[int | None, float] = (settings["top_k"], settings["top_p"])
        self._truncates = bool(settings["top_k"]) or settings["top_p"] < 1.0
        self._recorded: dict[int, _Recorded] = {}

    def is_argmax_invariant(self) -> bool:
        return False  # so that it is never skipped; it comes last, after every other processor of its kind

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._recorded, batch_update, self._new_request)

    def _new_request(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Recorded | None:
        arguments = params.extra_args or {}
        if arguments.get("record") is None:
            return None
        return _Recorded(arguments["record"], frozenset(arguments["keep_rows"]), output_ids)

    def apply(self, logits: Tensor) -> Tensor:
        logits[:, self._vocabulary_size :] = float("-inf")
        if not self._truncates:
            self._keep(logits, None)
            return logits.div_(self._temperature)
        drawn = log_probabilities(logits, self._temperature, *self._truncation)
        self._keep(logits, drawn)
        return drawn

    def _keep(self, logits: Tensor, drawn: Tensor | None) -> None:
        """Record what this step samples from. drawn: the truncated log-probabilities, None without truncation.

        A step whose token is dropped (a prefill in parts, a request that is preempted) is seen again at the same
        offset: the last one counts, since its token stays.
        """
        kept = [
            (place, request)
            for place, request in self._recorded.items()
            if drawn is not None or len(request.output_ids) in request.keep_rows
        ]
        if not kept:
            return
        places = [place for place, _ in kept]
        whole = log_probabilities(logits[places, : self._vocabulary_size], self._temperature)
        rows = whole.cpu().numpy()
        if drawn is not None:
            truncated = drawn[places, : self._vocabulary_size]
            drawn_rows = truncated.cpu().numpy()
            log_mass = (whole.amax(-1) - truncated.amax(-1)).tolist()
        for k, (_, request) in enumerate(kept):
            record = _RECORDS.setdefault(request.key, Record())
            offset = len(request.output_ids)
            if drawn is not None:
                record.log_mass[offset] = log_mass[k]
            if offset in request.keep_rows:
                record.rows[offset] = rows[k].copy()  # not a view, which would keep the other requests' rows alive
                if drawn is not None:
                    record.drawn_rows[offset] = drawn_rows[k].copy()
