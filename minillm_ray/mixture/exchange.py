"""What student and teacher tell each other while a mixed response is drawn. Neither sees the other's weights."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Proposal:
    """A sequence whose last tokens are the student's proposal.

    token_ids       int32 [P + n], prompt, tokens that stand already, tokens proposed; it is whole, so that any teacher
                    replica can judge it
    prompt_length   P
    start           slot of the first proposed token, 0 <= start < n
    log_threshold   float32 [n - start], nats. A proposed token stands if log p(y) >= its threshold: log u + log q(y)
                    where the coin says teacher (u uniform, q of the weights that drew y), -inf where it says student,
                    +inf where the teacher draws the token itself
    """

    token_ids: npt.NDArray[np.int32]
    prompt_length: int
    start: int
    log_threshold: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """How far a proposal stands.

    teacher_logprob   float32 [a], log p of the first a proposed tokens, which stand
    row               float32 [V], log p of the whole vocabulary where the next one fell; None if all stand
    """

    teacher_logprob: npt.NDArray[np.float32]
    row: npt.NDArray[np.float32] | None


Verify = Callable[[Proposal], Awaitable[Verdict]]
"""The teacher, as a sampler sees it. log p is at the sampling temperature, truncated by top-k and top-p."""
