"""Rows that pad a model's head are never sampled: their logits are set to minus infinity before the softmax."""

from collections.abc import Callable

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class MaskPaddedVocabulary(AdapterLogitsProcessor):
    """Reads `vocabulary_size` from a request's extra_args; a head without padding costs nothing."""

    def is_argmax_invariant(self) -> bool:
        return False  # applied to the raw logits, so that the reported log-probabilities leave the padding out

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[[list[int], Tensor], Tensor] | None:
        size = (params.extra_args or {}).get("vocabulary_size")
        if size is None:
            return None

        def mask(output_ids: list[int], logits: Tensor) -> Tensor:
            logits[size:] = float("-inf")
            return logits

        return mask
