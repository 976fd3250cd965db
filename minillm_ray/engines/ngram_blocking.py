"""No n-gram twice: a token that would repeat one of the prompt or the response is never sampled.

The tests of MiniLLM (arXiv 2306.08543) block 6-grams; its training and validation do not. The log-probabilities that
the engine reports are then those of the blocked distribution.
"""

from collections.abc import Callable

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from minillm_ray.engines.seen_ngrams import SeenNgrams


class BlockSeenNgrams(AdapterLogitsProcessor):
    """Reads `no_repeat_ngram`, the n, from a request's extra_args; a request without it costs nothing."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], list[int], Tensor], Tensor] | None:
        n = (params.extra_args or {}).get("no_repeat_ngram")
        if n is None:
            return None
        seen = SeenNgrams(n)

        def ban(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
            banned = seen.banned([*prompt_ids, *output_ids])
            if banned:
                logits[list(banned)] = float("-inf")
            return logits

        return ban
