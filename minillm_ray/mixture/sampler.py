"""One response drawn from alpha p + (1 - alpha) q, by a student and a teacher that sit in engines of their own.

    student proposes tokens --> teacher judges them --> those before the first that falls stand
             ^                                                       |
             +------ the one that fell is drawn again, go on --------+

The teacher only reads: what it reads to judge is what it would read to score. Responses know nothing of each other,
so that an engine steps the others while one waits.
"""

from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from minillm_ray.engines.generation import GeneratedSequence
from minillm_ray.mixture import arithmetic
from minillm_ray.mixture.coins import draw_coins
from minillm_ray.mixture.exchange import Proposal, Verdict, Verify
from minillm_ray.mixture.risk import RiskyCoins


@dataclass(frozen=True)
class MixtureSettings:
    """alpha: the teacher's share, 0 to 1. stop_token_ids: end tokens.

    scheme: "propose_verify", where the student's token may stand for the teacher's, or "handoff", where the teacher
    draws each of its tokens itself. proposal_tokens: the most that one proposal holds, in the former; a few dozen bound
    what is in vain until the first verdicts are there, and the teacher has something to read while the student draws.
    """

    alpha: float
    scheme: Literal["propose_verify", "handoff"]
    stop_token_ids: tuple[int, ...]
    proposal_tokens: int = 32


class Propose(Protocol):
    """The student, as a sampler sees it (minillm_ray.engines.generation.GenerationEngine.add, and its result)."""

    def __call__(
        self, token_ids: Sequence[int], *, max_new_tokens: int, seed: int, first_slot: int, keep_rows: Collection[int]
    ) -> Awaitable[GeneratedSequence]: ...


@dataclass(frozen=True)
class SamplingCounts:
    """What one response cost. Its correction rate is num_corrections / num_tokens.

    num_tokens             of the response
    num_coins              its tokens that were the teacher's to draw
    num_corrections        its tokens that replaced one of the student's
    num_student_tokens     drawn by the student, also those that fell or came after one that did
    num_student_requests   proposals
    num_teacher_requests   verdicts
    """

    num_tokens: int
    num_coins: int
    num_corrections: int
    num_student_tokens: int
    num_student_requests: int
    num_teacher_requests: int


@dataclass(frozen=True)
class MixedResponse:
    """A response of n tokens: the arrays [n] of minillm_ray.data.trajectory.Trajectory."""

    response_ids: npt.NDArray[np.int32]
    sampler_logprob: npt.NDArray[np.float32]
    behavior_logprob: npt.NDArray[np.float32]
    weight_version: npt.NDArray[np.int32]
    truncated: bool
    counts: SamplingCounts


@dataclass
class _Response:
    """The tokens that stand so far, with what is recorded of each."""

    token_ids: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    log_mixture: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    num_corrections: int = 0
    num_student_tokens: int = 0
    num_requests: int = 0


async def sample(
    prompt_ids: Sequence[int],
    settings: MixtureSettings,
    *,
    propose: Propose,
    verify: Verify,
    seed: int,
    max_response_tokens: int,
    risk: RiskyCoins,
) -> MixedResponse:
    """Draw one response. It depends on the seed, the prompt, the limit and the two models alone; nor, in the scheme
    of proposals, on where these end. With alpha 0 it is the response that the student draws by this seed on its own.

    risk: what was learned from the responses before, and is from this one.

    Where the student's weights change while it is drawn, each token keeps the log-probabilities and the version of
    those that drew it; a corrected token those of the row that it was corrected from.
    """
    coins = draw_coins(seed, alpha=settings.alpha, num_slots=max_response_tokens)
    prompt = list(prompt_ids)
    response = _Response()
    while True:
        start = len(response.token_ids)
        if settings.scheme == "handoff":
            end = arithmetic.handoff_end(start, teacher=coins.teacher)
        else:
            end = arithmetic.proposal_end(
                start, proposal_tokens=settings.proposal_tokens, risky=risk.among(coins.teacher, coins.accept)
            )
        drawn = await propose(
            prompt + response.token_ids,
            max_new_tokens=end - start,
            seed=seed,
            first_slot=start,
            keep_rows=np.flatnonzero(coins.teacher[start:end]).tolist(),
        )
        slots = slice(start, start + len(drawn.token_ids))
        if settings.scheme == "handoff":
            threshold = arithmetic.handoff_threshold(coins.teacher[slots])
        else:
            threshold = arithmetic.log_threshold(drawn.drawn_logprob, coins.teacher[slots], coins.accept[slots])
        token_ids = np.array([*prompt, *response.token_ids, *drawn.token_ids], dtype=np.int32)
        verdict = await verify(Proposal(token_ids, len(prompt), start, threshold))
        _keep(response, drawn, verdict, settings, coins.redraw)
        judged = coins.teacher[start : len(response.token_ids)]
        risk.observe(num_coins=int(judged.sum()), num_fallen=int(verdict.row is not None))
        ended = response.token_ids[-1] in settings.stop_token_ids
        if ended or len(response.token_ids) == max_response_tokens:
            return _finished(response, coins.teacher, truncated=not ended)


def _keep(
    response: _Response,
    drawn: GeneratedSequence,
    verdict: Verdict,
    settings: MixtureSettings,
    redraw: npt.NDArray[np.float64],
) -> None:
    """Add what stands of a proposal, and the token that replaces the first that does not."""
    stands = len(verdict.teacher_logprob)
    response.token_ids += drawn.token_ids[:stands].tolist()
    response.logprob += drawn.logprob[:stands].tolist()
    mixed = arithmetic.log_mixture(verdict.teacher_logprob, drawn.drawn_logprob[:stands], settings.alpha)
    response.log_mixture += mixed.tolist()
    response.version += drawn.weight_version[:stands].tolist()
    response.num_student_tokens += len(drawn.token_ids)
    response.num_requests += 1
    if verdict.row is None:
        return
    student = drawn.rows[stands]
    uniform = redraw[len(response.token_ids)]
    if settings.scheme == "handoff":
        token = arithmetic.draw(verdict.row, uniform)
    else:
        token = arithmetic.draw_residual(verdict.row, student.drawn_logprob, uniform)
    response.token_ids.append(token)
    response.logprob.append(float(student.logprob[token]))
    response.log_mixture.append(
        float(arithmetic.log_mixture(verdict.row[token], student.drawn_logprob[token], settings.alpha))
    )
    response.version.append(int(drawn.weight_version[stands]))
    response.num_corrections += 1


def _finished(response: _Response, teacher: npt.NDArray[np.bool_], *, truncated: bool) -> MixedResponse:
    num_tokens = len(response.token_ids)
    return MixedResponse(
        response_ids=np.array(response.token_ids, dtype=np.int32),
        sampler_logprob=np.array(response.logprob, dtype=np.float32),
        behavior_logprob=np.array(response.log_mixture, dtype=np.float32),
        weight_version=np.array(response.version, dtype=np.int32),
        truncated=truncated,
        counts=SamplingCounts(
            num_tokens=num_tokens,
            num_coins=int(teacher[:num_tokens].sum()),
            num_corrections=response.num_corrections,
            num_student_tokens=response.num_student_tokens,
            num_student_requests=response.num_requests,
            num_teacher_requests=response.num_requests,
        ),
    )
