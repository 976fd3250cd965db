"""Hidden states from transformers, for models that vLLM does not have: no cache, one padded batch a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine

_STEP_TOKENS = 4096
"""Of one step, padding included: enough to fill a GPU, and the activations of one layer stay small."""


class TransformersEngine(HiddenStateEngine):
    """The body of a causal model on one device; each step runs the longest-waiting requests that fit into a batch."""

    def __init__(self, settings: EngineSettings) -> None:
        from transformers import AutoModelForCausalLM

        self._device = torch.device("cuda" if settings.device == "gpu" else "cpu")
        model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
        self._body = model.get_decoder().eval().to(self._device)
        self._waiting: dict[str, list[int]] = {}

    @property
    def block_tokens(self) -> int:
        return 1

    def add(self, request_id: str, token_ids: Sequence[int], *, num_known: int = 0) -> None:
        self._waiting[request_id] = list(token_ids)

    def step(self) -> list[HiddenRows]:
        batch = self._take()
        hidden = self._run(list(batch.values()))
        return [
            HiddenRows(request_id, rows[: len(token_ids)].clone(), 0)
            for (request_id, token_ids), rows in zip(batch.items(), hidden, strict=True)
        ]

    def has_unfinished(self) -> bool:
        return bool(self._waiting)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._waiting.pop(request_id, None)

    def _take(self) -> dict[str, list[int]]:
        batch: dict[str, list[int]] = {}
        longest = 0
        for request_id, token_ids in self._waiting.items():
            longest = max(longest, len(token_ids))
            if batch and (len(batch) + 1) * longest > _STEP_TOKENS:
                break
            batch[request_id] = token_ids
        for request_id in batch:
            del self._waiting[request_id]
        return batch

    @torch.no_grad()
    def _run(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B, longest, d_t] on the CPU. Padding is on the right and masked: which id it has says nothing."""
        width = max(map(len, sequences))
        input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, token_ids in enumerate(sequences):
            input_ids[row, : len(token_ids)] = torch.tensor(token_ids)
            mask[row, : len(token_ids)] = 1
        output = self._body(input_ids=input_ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False)
        return output.last_hidden_state.cpu()


@dataclass(frozen=True)
class Reference:
    """What transformers makes of one sequence of L tokens. hidden: float32 [L, d_t], final; logits: float32 [L, V]."""

    hidden: Tensor
    logits: Tensor


@torch.no_grad()
def reference(model: str, token_ids: Sequence[int], *, dtype: torch.dtype, vocabulary_size: int) -> Reference:
    """Of transformers' own forward passes on the CPU: no engine, payload or head of ours.

    dtype: the weights are rounded to it; the arithmetic is float32.
    """
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).float().eval()
    input_ids = torch.tensor([list(token_ids)])
    hidden = whole.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    logits = whole(input_ids=input_ids, use_cache=False).logits
    return Reference(hidden[0], logits[0, :, :vocabulary_size])
