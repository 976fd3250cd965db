"""Every prompt of an epoch exactly once, in an order that seed and epoch give; one number is the whole state."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.pipeline.ledger import Assignment, Ledger

num_prompts = st.integers(1, 30)
takes = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(num_prompts, takes, st.integers(0, 1000))
def test_each_epoch_hands_out_each_prompt_exactly_once(size: int, counts: list[int], seed: int) -> None:
    """However the takes are cut, also across epochs; epochs come one after the other."""
    ledger = Ledger(size, seed=seed)
    taken = [assignment for count in counts for assignment in ledger.take(count)]
    assert len(taken) == ledger.num_taken == sum(counts)
    assert [assignment.epoch for assignment in taken] == [number // size for number in range(len(taken))]
    for epoch in range(len(taken) // size):
        inside = Counter(assignment.prompt_index for assignment in taken if assignment.epoch == epoch)
        assert inside == Counter(range(size))
    assert all(count == 1 for count in Counter(taken).values())


@given(num_prompts, takes, st.integers(0, 100), st.integers(0, 30))
def test_the_number_taken_restores_the_ledger(size: int, counts: list[int], seed: int, more: int) -> None:
    """A resumed run goes on with the very next prompt."""
    ledger = Ledger(size, seed=seed)
    for count in counts:
        ledger.take(count)
    restored = Ledger(size, seed=seed, num_taken=ledger.num_taken)
    assert restored.take(more) == ledger.take(more)


@given(num_prompts, takes)
def test_how_the_takes_are_cut_does_not_matter(size: int, counts: list[int]) -> None:
    """A change of the round's size keeps the order of prompts."""
    one, other = Ledger(size, seed=3), Ledger(size, seed=3)
    assert [assignment for count in counts for assignment in one.take(count)] == other.take(sum(counts))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """The same prompts in another order, the second time and in another run."""
    taken = Ledger(50, seed=1).take(100)
    first, second = [a.prompt_index for a in taken[:50]], [a.prompt_index for a in taken[50:]]
    other = [a.prompt_index for a in Ledger(50, seed=2).take(50)]
    assert first != sorted(first)
    assert len({tuple(order) for order in (first, second, other)}) == 3


def test_taking_nothing_changes_nothing() -> None:
    """And a single prompt is handed out epoch after epoch."""
    ledger = Ledger(1, seed=0)
    assert ledger.take(0) == []
    assert ledger.take(3) == [Assignment(0, 0), Assignment(0, 1), Assignment(0, 2)]
