"""Padded micro-batches train every response token once, each at the position that predicts it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.learner.micro_batches import collate, split_by_tokens

lengths = st.lists(st.integers(1, 40), max_size=25)
budgets = st.integers(1, 120)


@given(lengths, budgets)
def test_every_sequence_is_in_exactly_one_group_within_the_budget(sizes: list[int], budget: int) -> None:
    """Padded area at most the budget; only a sequence that is longer alone exceeds it, in a group of its own."""
    groups = split_by_tokens(sizes, budget)
    assert sorted(member for group in groups for member in group) == list(range(len(sizes)))
    for group in groups:
        area = len(group) * max(sizes[member] for member in group)
        assert area <= budget or len(group) == 1


@given(lengths, budgets)
def test_neighbours_in_length_share_a_group(sizes: list[int], budget: int) -> None:
    """Longest first, so that little is padding; a further group begins only where the last one is full."""
    groups = split_by_tokens(sizes, budget)
    ordered = [sizes[member] for group in groups for member in group]
    assert ordered == sorted(sizes, reverse=True)
    for group, following in pairwise(groups):
        assert (len(group) + 1) * sizes[group[0]] > budget
        assert sizes[group[-1]] >= sizes[following[0]]


def test_equal_lengths_keep_their_order() -> None:
    """So that the first sequences of a share are among the first groups, run after run."""
    assert split_by_tokens([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]


pairs = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12)


@given(pairs, budgets)
def test_every_trained_token_appears_exactly_once_at_the_position_before_it(
    sizes: list[tuple[int, int]], budget: int
) -> None:
    """Every id is unique here, so a token, its place and its sequence can be told from the id alone."""
    starts = np.cumsum([0, *[prompt + response for prompt, response in sizes]])
    sequences = [np.arange(start, end) + 1 for start, end in pairwise(starts)]
    prompts = [prompt for prompt, _ in sizes]
    trained = []
    for group in split_by_tokens([len(sequence) for sequence in sequences], budget):
        batch = collate(sequences, prompts, group)
        assert batch.members == tuple(group)
        # The token before a trained one, read from where the slot points, is its predecessor.
        assert torch.equal(batch.input_ids.flatten()[batch.slots], batch.tokens - 1)
        for place, member in enumerate(group):
            packed = batch.tokens[batch.cu_seqlens[place] : batch.cu_seqlens[place + 1]]
            assert packed.tolist() == sequences[member][prompts[member] :].tolist()
        trained += batch.tokens.tolist()
    expected = [
        token for sequence, prompt in zip(sequences, prompts, strict=True) for token in sequence[prompt:].tolist()
    ]
    assert sorted(trained) == expected


def test_a_batch_is_padded_on_the_right_to_its_longest_sequence() -> None:
    """Slots are counted over the flattened rows; the types are those that a model and the objective take."""
    sequences = [np.array([1, 2, 3], dtype=np.int32), np.array([4, 5, 6, 7, 8], dtype=np.int32)]
    batch = collate(sequences, [2, 1], [1, 0], pad_id=9)
    assert batch.input_ids.tolist() == [[4, 5, 6, 7, 8], [1, 2, 3, 9, 9]]
    assert batch.slots.tolist() == [0, 1, 2, 3, 5 + 1]
    assert batch.tokens.tolist() == [5, 6, 7, 8, 3]
    assert batch.cu_seqlens.tolist() == [0, 4, 5]
    assert (batch.input_ids.dtype, batch.slots.dtype, batch.tokens.dtype) == (torch.int64,) * 3
    assert batch.cu_seqlens.dtype == torch.int32


def test_the_budget_counts_padding() -> None:
    """Two sequences of 5 and 1 tokens are 10 positions together."""
    assert split_by_tokens([5, 1], 9) == [[0], [1]]
    assert split_by_tokens([5, 1], 10) == [[0, 1]]


@pytest.mark.parametrize("sizes", [[], [7]])
def test_none_and_one(sizes: list[int]) -> None:
    """An empty share has no groups; a sequence longer than the budget is trained all the same."""
    assert split_by_tokens(sizes, 3) == [[k] for k in range(len(sizes))]
