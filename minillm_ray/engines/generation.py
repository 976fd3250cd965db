"""A vLLM generate engine in this process: token ids in, token ids and log-probabilities out.

The caller owns the step loop; between two steps it may load new weights. Requests in flight then go on: their tokens
so far keep the log-probabilities and the version that drew them, later ones are drawn by the new weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

_CPU_BLOCK_TOKENS = 32
_CPU_STEP_TOKENS = 4096


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built from. vocabulary_size: rows of the head above it are padding and are never sampled."""

    model: str
    dtype: str
    max_model_tokens: int
    tensor_parallel: int
    device: str
    vocabulary_size: int
    seed: int


@dataclass(frozen=True)
class GeneratedSequence:
    """One finished response of n tokens.

    token_ids int32 [n]; logprob float32 [n], nats, at the sampling temperature over the tokenizer's vocabulary;
    weight_version int32 [n]; truncated: it reached its token limit without an end token.
    """

    request_id: str
    token_ids: np.ndarray
    logprob: np.ndarray
    weight_version: np.ndarray
    truncated: bool


class GenerationEngine:
    """One in-process vLLM engine that samples from the whole distribution at one temperature."""

    def __init__(self, settings: EngineSettings, *, temperature: float, stop_token_ids: Sequence[int]) -> None:
        from vllm.v1.engine.llm_engine import LLMEngine

        self._engine = LLMEngine.from_engine_args(engine_arguments(settings, _sampling_role(settings)))
        self._vocabulary_size = settings.vocabulary_size
        self._temperature = temperature
        self._stop_token_ids = list(stop_token_ids)
        self._engine.set_weight_version("0")

    def add(self, request_id: str, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """Queue one request. The same seed and weights draw the same response on any replica."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=self._temperature,
            seed=seed,
            max_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,  # the end tokens are those above, not what the model's folder says
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"vocabulary_size": self._vocabulary_size},
        )
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt_ids)}, parameters)

    def step(self) -> list[GeneratedSequence]:
        """One engine step: at most one token for each running request. Returns those that finished."""
        return [_sequence(output) for output in self._engine.step() if output.finished]

    def has_unfinished(self) -> bool:
        return self._engine.has_unfinished_requests()

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace every weight, by Hugging Face name, and forget all keys and values of the old ones.

        Raises RuntimeError if the cache could not be reset: going on would mix two versions in one attention.
        """
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        self._engine.set_weight_version(str(version))
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(f"vLLM kept its prefix cache after loading weight version {version}")


def engine_arguments(settings: EngineSettings, role: dict[str, Any]) -> Any:
    """vLLM's EngineArgs for an engine in this process. role: what sampling and pooling engines set differently."""
    from vllm.engine.arg_utils import EngineArgs

    on_cpu = settings.device == "cpu"
    return EngineArgs(
        model=settings.model,
        dtype=settings.dtype,
        max_model_len=settings.max_model_tokens,
        tensor_parallel_size=settings.tensor_parallel,
        distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
        enforce_eager=on_cpu,
        block_size=_CPU_BLOCK_TOKENS if on_cpu else None,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        seed=settings.seed,
        disable_log_stats=True,
        **role,
    )


def _sampling_role(settings: EngineSettings) -> dict[str, Any]:
    from minillm_ray.engines.padded_vocabulary import MaskPaddedVocabulary

    role: dict[str, Any] = {"logprobs_mode": "processed_logprobs", "logits_processors": [MaskPaddedVocabulary]}
    if settings.device == "cpu":
        # A prompt whose prefill is cut over two steps makes vLLM rewind the request's random generator, which torch
        # cannot do on a CPU ("CPU Generator does not use offset"): here every prompt is prefilled in one step.
        tokens = max(_CPU_STEP_TOKENS, settings.max_model_tokens)
        role |= {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    return role


def _sequence(request_output: Any) -> GeneratedSequence:
    output = request_output.outputs[0]
    token_ids = np.asarray(output.token_ids, dtype=np.int32)
    logprob = np.asarray(
        [row[token].logprob for token, row in zip(output.token_ids, output.logprobs, strict=True)], dtype=np.float32
    )
    weight_version = np.zeros(len(token_ids), dtype=np.int32)
    for span in output.weight_versions or ():
        weight_version[span.start : span.end] = int(span.version)
    return GeneratedSequence(
        request_id=request_output.request_id,
        token_ids=token_ids,
        logprob=logprob,
        weight_version=weight_version,
        truncated=output.finish_reason != "stop",
    )
