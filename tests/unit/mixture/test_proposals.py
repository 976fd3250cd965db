"""Proposals are as long as the share of tokens that fall asks for."""

import pytest

from minillm_ray.mixture.proposals import ProposalLength
from minillm_ray.mixture.sampler import SamplingCounts


def counts(num_tokens: int, num_corrections: int) -> SamplingCounts:
    return SamplingCounts(num_tokens, num_tokens, num_corrections, num_tokens, 1, 1)


def after(*responses: SamplingCounts, block_tokens: int = 32) -> int:
    length = ProposalLength(block_tokens)
    for response in responses:
        length.observe(response)
    return length.tokens


@pytest.mark.parametrize(("num_corrections", "expected"), [(0, 32), (62, 32), (63, 16), (1000, 16)])
def test_half_blocks_begin_where_they_cost_the_teacher_less(num_corrections: int, expected: int) -> None:
    """1.5 + 0.75 B rho < 1 + B rho from rho = 2 / B on: 0.0625 with blocks of 32 tokens."""
    assert after(counts(1000, num_corrections)) == expected


def test_the_first_proposals_are_whole_blocks() -> None:
    """Nothing is known yet."""
    assert after() == 32


def test_the_length_follows_a_student_that_changes() -> None:
    """Some hundred responses later it is as if the earlier ones had not been."""
    bad, good = counts(50, 20), counts(50, 0)
    assert after(*[bad] * 500) == 16
    assert after(*[bad] * 500, *[good] * 100) == 32
    assert after(*[good] * 500, *[bad] * 100) == 16


def test_a_proposal_has_a_token_at_least() -> None:
    """Where the teacher has no cache a block is one token."""
    assert after(counts(10, 10), block_tokens=1) == 1
