"""How long the student's proposals are, by the share of its tokens that fell so far. Only speed depends on it."""

from minillm_ray.mixture.sampler import SamplingCounts

_KEPT = 31 / 32
"""What a response leaves of the weight of those before it: the share follows the students of the last rounds."""


class ProposalLength:
    """Whole blocks of the teacher's prefix cache, or half ones where tokens fall so often that these cost it less.

    With blocks of B tokens, of which a share rho falls, the teacher computes 1 + B rho tokens for each that is sampled
    if proposals end with blocks, and 1.5 + 0.75 B rho if they end in the middle of blocks too. The two are equal at
    rho = 2 / B. The student wastes half as many tokens behind one that falls.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._num_tokens = self._num_corrections = 0.0

    @property
    def tokens(self) -> int:
        """Of the next proposal. A whole block until the first response is there."""
        fall_often = self._num_corrections * self._block_tokens > 2 * self._num_tokens
        return max(self._block_tokens // 2, 1) if fall_often else self._block_tokens

    def observe(self, counts: SamplingCounts) -> None:
        """Learn from a finished response."""
        self._num_tokens = _KEPT * self._num_tokens + counts.num_tokens
        self._num_corrections = _KEPT * self._num_corrections + counts.num_corrections
