"""One sequence through the whole scoring path at the start, so that a silent mistake stops the run and not its result.

    head     transformers' hidden states --> our head --> log p                    against transformers' own logits
    engine   engine --> payload --> head --> log p                                 against the same
    itself   engine, over a session that reads the prefix cache --> ... --> log p  against one pass that does not

The first two need a second copy of the weights, in transformers. Where the model is too large for that only the third
is made, which sees a broken cache and rows in the wrong place. It cannot see what both passes have in common: states
from before the final norm, a cast, a head that is not the model's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from minillm_ray.config.errors import InputError
from minillm_ray.data.trajectory import HiddenPayload, Payload, SampledPayload, TopKPayload, Trajectory
from minillm_ray.engines.heads import head_logits
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.engines.transformers_hidden import Reference
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal
from minillm_ray.objective import Head
from minillm_ray.teacher.scorer import TeacherScorer

Comparison = Literal["head", "engine", "itself"]

_TOLERANCE: dict[tuple[Comparison, torch.dtype], float] = {
    ("head", torch.float32): 1e-4,
    ("head", torch.bfloat16): 2e-2,
    ("engine", torch.float32): 2e-4,
    ("engine", torch.bfloat16): 0.1,
    ("itself", torch.float32): 2e-4,
    ("itself", torch.bfloat16): 0.1,
}
"""Difference of log-probabilities over their spread, at three quarters of the positions at most. In float32 two right
paths differ by 1e-6 to 1e-5 and one cast to bfloat16 makes 1e-3. In bfloat16 a model of 30 layers differs by 3e-2 from
exact arithmetic, its head alone by 5e-3, and at single positions by more: hence not the largest. A wrong norm or head
makes 1 at every position, a broken cache at half of them."""
_LEAST_SPREAD = 1e-3
"""Nats. A model that knows nothing has no spread."""
_MIN_TOKENS = 48
_SESSION = "probe"


@dataclass(frozen=True)
class ProbeResult:
    """relative_error: root mean square difference of a position's log-probabilities over the spread of all, the third
    quartile of positions; largest_nats: the largest difference of one."""

    compared_with: Literal["transformers", "itself"]
    relative_error: float
    largest_nats: float


@dataclass(frozen=True)
class Probe:
    """What the learner reads a payload with: the teacher's head and the objective's temperature.

    model: named in messages; dtype: promised for weights and hidden states.
    """

    model: str
    head: Head
    temperature: float
    dtype: torch.dtype

    async def run(self, scorer: TeacherScorer, trajectory: Trajectory, reference: Reference | None) -> ProbeResult:
        """reference: of the trajectory's L tokens; None where the model does not fit into transformers.

        Raises InputError where two ways to the same log-probabilities differ by more than the dtype explains.
        """
        try:  # first: what one pass leaves in the cache has no rows to keep
            await _propose_in_two_parts(scorer, trajectory)
        except FloatingPointError:
            raise InputError(self._message("engine", "values that are not numbers")) from None
        _, payload = await scorer.score(trajectory, _SESSION)
        collected = self._read(payload, trajectory)
        _, payload = await scorer.score(trajectory)
        alone = self._read(payload, trajectory)
        if reference is None:
            return ProbeResult("itself", *self._compare("itself", collected, alone))
        predicting = slice(len(trajectory.prompt_ids) - 1, -1)
        expected = log_probabilities(reference.logits[predicting], self.temperature)
        self._compare("head", self._log_probabilities(reference.hidden[predicting]), expected)
        outcome = ProbeResult("transformers", *self._compare("engine", alone, expected))
        self._compare("itself", collected, alone)
        return outcome

    def _read(self, payload: Payload, trajectory: Trajectory) -> Tensor:
        """float32 [n, V], log p as the payload has it, nan where it does not say."""
        if isinstance(payload, HiddenPayload):
            return self._log_probabilities(decode_hidden(payload))
        known = torch.full((len(trajectory.response_ids), self.head.vocab_size or len(self.head.weight)), math.nan)
        if isinstance(payload, TopKPayload):
            known.scatter_(1, torch.from_numpy(payload.ids).long(), torch.from_numpy(payload.logprob))
        if isinstance(payload, TopKPayload | SampledPayload):
            tokens = torch.from_numpy(trajectory.response_ids).long()
            known.scatter_(1, tokens[:, None], torch.from_numpy(payload.token_logprob)[:, None])
        return known

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        return log_probabilities(head_logits(hidden, self.head), self.temperature).cpu()

    def _compare(self, comparison: Comparison, found: Tensor, expected: Tensor) -> tuple[float, float]:
        """Relative error and largest difference, both rows [n, V] with nan where one does not say."""
        if found.shape != expected.shape:
            raise InputError(self._message(comparison, f"{found.shape[1]} ids, not {expected.shape[1]}"))
        spread = expected[~expected.isnan()].std(correction=0).clamp_min(_LEAST_SPREAD)
        difference = found - expected
        of_positions = difference.square().nanmean(1).sqrt() / spread
        error, largest = float(of_positions.quantile(0.75)), float(difference.abs().nan_to_num(0.0).max())
        tolerance = _TOLERANCE[comparison, self.dtype]
        if not error <= tolerance:
            raise InputError(
                self._message(
                    comparison,
                    f"a difference of {error:.2g} of their spread (expected at most {tolerance:g} in "
                    f"{str(self.dtype).removeprefix('torch.')}), {largest:.2g} nats at its largest",
                )
            )
        return error, largest

    def _message(self, comparison: Comparison, what: str) -> str:
        pair, causes = _CAUSES[comparison]
        return f"teacher: {self.model}: its log-probabilities {pair} have {what}. Likely causes: {causes}"


_CAUSES: dict[Comparison, tuple[str, str]] = {
    "head": (
        "by the head that was read from its files, beside transformers' own of the same hidden states,",
        "an output head that is missing and another tensor taken for it; a bias, logit scale or soft-cap that is not "
        "applied; a vocabulary that is not the tokenizer's. Check that the folder is whole and its tokenizer its own",
    ),
    "engine": (
        "through engine, payload and head, beside those of transformers on the same weights,",
        "hidden states from before the model's final norm; a cast to a lower precision on the way, or a dtype that the "
        "engine does not keep; weights that the engine reads in another way. Set teacher.engine=transformers",
    ),
    "itself": (
        "collected over a session, beside those of one pass,",
        "a prefix cache that returns other keys and values than it was given, or rows that stand in another place. "
        "Set teacher.engine=transformers, which has no cache",
    ),
}


def probe_trajectory(vocabulary_size: int, *, block_tokens: int, max_tokens: int) -> Trajectory:
    """Ids from the whole of the vocabulary, its first and last included, over more than two cache blocks if they fit.

    vocabulary_size: of the tokenizer; max_tokens: the longest sequence that the engine takes, at least 3.
    """
    length = min(max_tokens, max(_MIN_TOKENS, 3 * block_tokens))
    ids = np.random.default_rng(0).permutation(np.linspace(0, vocabulary_size - 1, length).astype(np.int32))
    num_prompt = length // 3
    response = ids[num_prompt:]
    return Trajectory(
        prompt_index=0,
        prompt_ids=ids[:num_prompt],
        response_ids=response,
        sampler_logprob=np.zeros(len(response), dtype=np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(len(response), dtype=np.int32),
        truncated=True,
    )


async def _propose_in_two_parts(scorer: TeacherScorer, trajectory: Trajectory) -> None:
    """The first part with another token at its end, which the second corrects."""
    num_prompt, num_response = len(trajectory.prompt_ids), len(trajectory.response_ids)
    middle = num_prompt + num_response // 2
    wrong = trajectory.token_ids[:middle].copy()
    wrong[-2:] = wrong[-2:][::-1]
    for token_ids, start in ((wrong, 0), (trajectory.token_ids, middle - num_prompt)):
        threshold = np.full(len(token_ids) - num_prompt - start, -math.inf, dtype=np.float32)
        await scorer.extend(_SESSION, Proposal(token_ids, num_prompt, start, threshold))
