"""Where a proposal ends, which of its tokens stand, what replaces one that does not, and how likely each token was.

Letters: p the teacher, q the student that drew, m = alpha p + (1 - alpha) q. Where a coin says teacher, the student's
token y stands with probability min(1, p(y) / q(y)), else a token is drawn from the normalised positive part of p - q:
the outcome has distribution p, whatever q. All in nats.
"""

import math

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float32]


def proposal_end(start: int, *, proposal_tokens: int, risky: npt.NDArray[np.bool_]) -> int:
    """The slot at which a proposal from slot `start` ends: after the first risky one, at most `proposal_tokens` on.

    risky: bool [limit], one for each slot of the response.
    """
    return _after_the_first(risky[start : start + proposal_tokens], start)


def handoff_end(start: int, *, teacher: npt.NDArray[np.bool_]) -> int:
    """The slot after the next one whose coin says teacher; teacher bool [limit]."""
    return _after_the_first(teacher[start:], start)


def log_threshold(drawn_logprob: Logprobs, teacher: npt.NDArray[np.bool_], accept: npt.NDArray[np.float64]) -> Logprobs:
    """float32 [n]: a proposed token stands if log p(y) is at least this. drawn_logprob: log q(y); accept: in (0, 1]."""
    return np.where(teacher, np.log(accept) + drawn_logprob, -np.inf).astype(np.float32)


def handoff_threshold(teacher: npt.NDArray[np.bool_]) -> Logprobs:
    """float32 [n]: no proposed token stands for one of the teacher's."""
    return np.where(teacher, np.inf, -np.inf).astype(np.float32)


def draw(log_weight: npt.NDArray[np.floating], uniform: float) -> int:
    """A token from the distribution [V] that is proportional to exp(log_weight), by the uniform in [0, 1)."""
    return _inverse(np.exp(log_weight.astype(np.float64)), uniform)


def draw_residual(teacher_row: Logprobs, student_row: Logprobs, uniform: float) -> int:
    """A token from the normalised positive part of p - q, by the uniform in [0, 1). Rows: log p and log q [V]."""
    p, q = (np.exp(row.astype(np.float64)) for row in (teacher_row, student_row))
    residual = np.maximum(p - q, 0.0)
    # Where p equals q, only rounding can let a token fall: p is then the limit that is left.
    return _inverse(residual if residual.any() else p, uniform)


def log_mixture(teacher_logprob: Logprobs, drawn_logprob: Logprobs, alpha: float) -> npt.NDArray[np.float64]:
    """log(alpha p + (1 - alpha) q) of given tokens."""
    log_alpha = math.log(alpha) if alpha > 0 else -math.inf
    log_rest = math.log1p(-alpha) if alpha < 1 else -math.inf
    return np.logaddexp(log_alpha + teacher_logprob.astype(np.float64), log_rest + drawn_logprob.astype(np.float64))


def _after_the_first(marked: npt.NDArray[np.bool_], start: int) -> int:
    """The slot after the first marked one of those from `start` on, or after all of them."""
    return start + (int(marked.argmax()) + 1 if marked.any() else len(marked))


def _inverse(weight: npt.NDArray[np.float64], uniform: float) -> int:
    """The first place at which the running sum exceeds its share; a place without weight is never drawn."""
    total = np.cumsum(weight)
    place = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return min(place, int(np.flatnonzero(weight)[-1]))
