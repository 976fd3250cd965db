"""A vLLM generate engine in this process: token ids in, token ids, log-probabilities and kept rows out.

The caller owns the step loop; between two steps it may load new weights. Requests in flight then go on: their tokens
so far keep the log-probabilities and the version that drew them, later ones are drawn by the new weights.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from minillm_ray.engines import shared_weights
from minillm_ray.engines.engine_arguments import merge_arguments
from minillm_ray.engines.vllm_import import llm_engine_class

CPU_BLOCK_TOKENS = 32
"""In a block of vLLM's prefix cache where there is no GPU, unless the user sets another: the fewest that it takes."""
_ENGINES_OF_THIS_PROCESS = itertools.count()


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built from.

    vocabulary_size: rows of the head above it are padding and are never sampled; quantization: vLLM's name of it;
    arguments: further ones of vLLM's EngineArgs; no_repeat_ngram: n of the n-grams that a generation engine never
    repeats (`engines/ngram_blocking.py`), None to draw freely; weight_transfer: the backend of vLLM's weight-transfer
    engine that a generation engine receives weights by, None where they are handed to `load_weights`.
    """

    model: str
    dtype: str
    max_model_tokens: int
    tensor_parallel: int
    device: str
    vocabulary_size: int
    seed: int
    pipeline_parallel: int = 1
    quantization: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    no_repeat_ngram: int | None = None
    weight_transfer: str | None = None

    @property
    def in_process(self) -> bool:
        """The model runs in the engine's own process, and not in workers of its own on several devices."""
        return self.tensor_parallel * self.pipeline_parallel == 1


@dataclass(frozen=True)
class Row:
    """The student's distribution where one token was drawn.

    logprob        float32 [V], nats, log q of the whole vocabulary at the sampling temperature
    drawn_logprob  float32 [V], the same truncated by top-k and top-p and renormalised, -inf where it was cut; the very
                   same array where nothing is truncated
    """

    logprob: npt.NDArray[np.float32]
    drawn_logprob: npt.NDArray[np.float32]


@dataclass(frozen=True)
class GeneratedSequence:
    """One finished response of n tokens.

    token_ids       int32 [n]
    logprob         float32 [n], nats, at the sampling temperature over the tokenizer's whole vocabulary
    drawn_logprob   float32 [n], nats, of the truncated distribution that it was drawn from; the very same array where
                    nothing is truncated
    weight_version  int32 [n]
    truncated       it reached its token limit without an end token
    rows            by output offset, of those offsets that were asked for and reached
    """

    request_id: str
    token_ids: npt.NDArray[np.int32]
    logprob: npt.NDArray[np.float32]
    drawn_logprob: npt.NDArray[np.float32]
    weight_version: npt.NDArray[np.int32]
    truncated: bool
    rows: Mapping[int, Row]


class GenerationEngine:
    """One in-process vLLM engine that samples at one temperature, from the whole distribution or truncated.

    top_k, top_p: as in `engines/truncation.py`.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        temperature: float,
        stop_token_ids: Sequence[int],
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> None:
        logits = {
            "vocabulary_size": settings.vocabulary_size,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        engine_class = llm_engine_class()
        self._engine = engine_class.from_engine_args(engine_arguments(settings, _sampling_role(settings, logits)))
        self._in_process = settings.in_process
        self._no_repeat_ngram = settings.no_repeat_ngram
        self._stop_token_ids = list(stop_token_ids)
        self._number = next(_ENGINES_OF_THIS_PROCESS)
        self._engine.set_weight_version("0")

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
        """Queue one request. The same seed and weights draw the same response on any replica.

        first_slot: of the response, where `token_ids` hold its beginning: slot t is drawn by number t of the seed.
        keep_rows: output offsets whose whole rows come back with the response; each holds V floats until then.
        """
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            temperature=0.0,  # minillm_ray/engines/drawing.py draws, and leaves its token as the likeliest
            max_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,  # the end tokens are those above, not what the model's folder says
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # nobody else has them
            extra_args={
                "record": self._record_key(request_id),
                "seed": seed,
                "first_slot": first_slot,
                "keep_rows": sorted(keep_rows),
                "no_repeat_ngram": self._no_repeat_ngram,
            },
        )
        self._engine.add_request(request_id, tokens_input(list(token_ids)), parameters)

    def step(self) -> list[GeneratedSequence]:
        """One engine step: at most one token for each running request. Returns those that finished."""
        finished = [output for output in self._engine.step() if output.finished]
        records = self._take_records([output.request_id for output in finished])
        return [_sequence(output, records[output.request_id]) for output in finished]

    def has_unfinished(self) -> bool:
        return self._engine.has_unfinished_requests()

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))
        self._take_records(request_ids)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace every weight, by Hugging Face name, and forget all keys and values of the old ones.

        Raises RuntimeError if the cache could not be reset: going on would mix two versions in one attention.
        """
        if self._in_process:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named_tensors)})
        else:
            with shared_weights.written(named_tensors) as file:
                self._engine.collective_rpc(shared_weights.load, args=(str(file),))
        self._begin_version(version)

    def join_weight_group(self, init_info: dict[str, Any]) -> None:
        """Meet the sender of weights, in a new group in place of any earlier one. Blocks until all are there.

        init_info: of `settings.weight_transfer`, as vLLM's trainer side makes it.
        """
        self._engine.collective_rpc("shutdown_weight_transfer_engine")
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def receive_weights(self, update_info: dict[str, Any], version: int) -> None:
        """As `load_weights`, from the group that was joined. update_info: likewise vLLM's.

        Where it raises, some weights may be new and others old: the engine is of no more use.
        """
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update_info})
        self._engine.collective_rpc("finish_weight_update")
        self._begin_version(version)

    def _begin_version(self, version: int) -> None:
        self._engine.set_weight_version(str(version))
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(f"vLLM kept its prefix cache after loading weight version {version}")

    def _record_key(self, request_id: str) -> str:
        """Of the records of all engines of a process."""
        return f"{self._number}/{request_id}"

    def _take_records(self, request_ids: Sequence[str]) -> dict[str, Any]:
        """The records of those requests that have drawn something, by request id; they are then forgotten."""
        if not request_ids:
            return {}
        from minillm_ray.engines.drawing import take_records

        keys = {self._record_key(request_id): request_id for request_id in request_ids}
        taken: dict[str, Any] = {}
        for of_one_worker in self._engine.collective_rpc(take_records, args=(list(keys),)):
            taken |= {keys[key]: record for key, record in of_one_worker.items()}
        return taken


def engine_arguments(settings: EngineSettings, role: dict[str, Any]) -> Any:
    """vLLM's EngineArgs for an engine in this process. role: what sampling and pooling engines set differently."""
    from vllm.engine.arg_utils import EngineArgs

    on_cpu = settings.device == "cpu"
    ours = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_tokens,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "quantization": settings.quantization,
        "distributed_executor_backend": "uni" if settings.in_process else "mp",
        "enable_prefix_caching": True,
        "scheduler_cls": "minillm_ray.engines.partial_hits.PartialHitScheduler",
        "skip_tokenizer_init": True,
        "seed": settings.seed,
        "disable_log_stats": True,
        **role,
    }
    defaults: dict[str, Any] = {"enforce_eager": on_cpu, "block_size": CPU_BLOCK_TOKENS if on_cpu else None}
    if on_cpu and settings.in_process:
        from minillm_ray.engines.cpu_normalization import OPERATORS, PROVIDER

        defaults["ir_op_priority"] = {operator: [PROVIDER] for operator in OPERATORS}
    known = frozenset(argument.name for argument in fields(EngineArgs))
    return EngineArgs(**merge_arguments(ours, defaults, settings.arguments, known))


def _sampling_role(settings: EngineSettings, logits: dict[str, Any]) -> dict[str, Any]:
    from minillm_ray.engines.drawing import SECTION, DrawTokens
    from minillm_ray.engines.ngram_blocking import BlockSeenNgrams

    role: dict[str, Any] = {
        "logits_processors": [BlockSeenNgrams, DrawTokens],  # in this order
        "additional_config": {SECTION: logits},
        # A step that is under way when new weights are loaded would be recorded with the wrong version.
        "async_scheduling": False,
    }
    if settings.weight_transfer is not None:
        from vllm.config import WeightTransferConfig

        role["weight_transfer_config"] = WeightTransferConfig(backend=settings.weight_transfer)
    return role


def _sequence(request_output: Any, record: Any) -> GeneratedSequence:
    output = request_output.outputs[0]
    token_ids = np.asarray(output.token_ids, dtype=np.int32)
    weight_version = np.zeros(len(token_ids), dtype=np.int32)
    for span in output.weight_versions or ():
        weight_version[span.start : span.end] = int(span.version)
    logprob = _by_offset(record.logprob, len(token_ids))
    return GeneratedSequence(
        request_id=request_output.request_id,
        token_ids=token_ids,
        logprob=logprob,
        drawn_logprob=_by_offset(record.drawn_logprob, len(token_ids)) if record.drawn_logprob else logprob,
        weight_version=weight_version,
        truncated=output.finish_reason != "stop",
        rows={offset: Row(row, record.drawn_rows.get(offset, row)) for offset, row in record.rows.items()},
    )


def _by_offset(logprob: Mapping[int, float], num_tokens: int) -> npt.NDArray[np.float32]:
    return np.asarray([logprob[offset] for offset in range(num_tokens)], dtype=np.float32)
