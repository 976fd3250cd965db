"""A vLLM pooling engine in this process: token ids in, final-norm hidden states out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm_ray.engines.generation import EngineSettings, engine_arguments

_POOLING = {
    "runner": "pooling",
    "convert": "embed",
    "pooler_config": {"task": "token_embed", "use_activation": False},
}


class PoolingEngine:
    """Hidden states of whole sequences; times the model's head they are its full next-token distributions."""

    def __init__(self, settings: EngineSettings) -> None:
        from vllm.v1.engine.llm_engine import LLMEngine

        self._engine = LLMEngine.from_engine_args(engine_arguments(settings, _POOLING))
        self._num_requests = 0

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each sequence of L token ids its hidden states, float32 or bfloat16 values in [L, d_t], in order."""
        from vllm import PoolingParams

        # Cached tokens return no hidden states, and here every one is wanted.
        parameters = PoolingParams(task="token_embed", use_activation=False, skip_reading_prefix_cache=True)
        first = self._num_requests
        for token_ids in sequences:
            self._engine.add_request(str(self._num_requests), {"prompt_token_ids": list(token_ids)}, parameters)
            self._num_requests += 1
        finished: dict[int, Tensor] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[int(output.request_id)] = output.outputs.data
        with torch.no_grad():
            return [finished[first + k] for k in range(len(sequences))]
