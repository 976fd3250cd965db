"""A vLLM pooling engine: token ids in, final-norm hidden states of exactly the tokens not read from its cache out."""

import re
from collections.abc import Sequence
from typing import Any

from minillm_ray.config.errors import InputError
from minillm_ray.engines.generation import EngineSettings, engine_arguments
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine
from minillm_ray.engines.vllm_import import llm_engine_class

_POOLING = {
    "runner": "pooling",
    "convert": "embed",
    "pooler_config": {"task": "token_embed", "use_activation": False},
    "async_scheduling": False,
}
_REFUSALS = (ValueError, NotImplementedError, TypeError, KeyError, AttributeError)
"""What vLLM raises while it builds a model that it cannot serve; pydantic's errors are ValueErrors.

Running out of memory is a RuntimeError: the model is fine and the remedy another.
"""
_MAX_REASON_CHARACTERS = 300
_PYDANTIC = re.compile(r"^\d+ validation errors? for \w+ (Value error, )?| \[type=.*")
"""What pydantic puts around vLLM's own words."""


class PoolingEngine(HiddenStateEngine):
    """One vLLM engine in this process, with worker processes of its own where it spans several GPUs.

    Raises InputError for a model that vLLM does not serve as a pooling model.
    """

    def __init__(self, settings: EngineSettings) -> None:
        engine_class = llm_engine_class()
        arguments = engine_arguments(settings, _POOLING)
        try:
            self._engine = engine_class.from_engine_args(arguments)
        except _REFUSALS as error:
            raise InputError(
                f"{settings.model}: vLLM's pooling engine refuses this model: {_one_line(error)}. If this cannot be "
                f"mended, set teacher.engine=transformers: slower, for any causal model that transformers has"
            ) from error

    @property
    def block_tokens(self) -> int:
        return int(self._engine.vllm_config.cache_config.block_size)

    def add(self, request_id: str, token_ids: Sequence[int], *, num_known: int = 0) -> None:
        from vllm.inputs import tokens_input
        from vllm.pooling_params import PoolingParams

        from minillm_ray.engines.partial_hits import LIMIT

        # Reading the cache is off by default for this task. vLLM's source lists the fields as internal: the start-up
        # probe scores one sequence both ways.
        parameters = PoolingParams(
            task="token_embed",
            use_activation=False,
            skip_reading_prefix_cache=num_known == 0,
            extra_kwargs={LIMIT: num_known},
        )
        self._engine.add_request(request_id, tokens_input(list(token_ids)), parameters)

    def step(self) -> list[HiddenRows]:
        return [_rows(output) for output in self._engine.step() if output.finished]

    def has_unfinished(self) -> bool:
        return self._engine.has_unfinished_requests()

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))


def _rows(output: Any) -> HiddenRows:
    hidden, length, cached = output.outputs.data, len(output.prompt_token_ids), output.num_cached_tokens
    if len(hidden) != length - cached:
        raise RuntimeError(
            f"vLLM returned {len(hidden)} hidden states for {length} tokens, {cached} of them from its cache: no row "
            f"can be told from another"
        )
    return HiddenRows(output.request_id, hidden, cached)


def _one_line(error: BaseException) -> str:
    line = _PYDANTIC.sub("", " ".join(str(error).split())) or type(error).__name__
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[:_MAX_REASON_CHARACTERS] + " ..."
