"""Every prompt of an epoch exactly once, in an order that seed and epoch give, whatever is lost on the way."""

import json
import random
from collections import Counter

import pytest
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
    assert [assignment.place for assignment in taken] == list(range(sum(counts)))
    assert [assignment.epoch for assignment in taken] == [place // size for place in range(len(taken))]
    for epoch in range(len(taken) // size):
        inside = Counter(assignment.prompt_index for assignment in taken if assignment.epoch == epoch)
        assert inside == Counter(range(size))


@given(num_prompts, takes)
def test_how_the_takes_are_cut_does_not_matter(size: int, counts: list[int]) -> None:
    """A change of the round's size keeps the order of prompts."""
    one, other = Ledger(size, seed=3), Ledger(size, seed=3)
    assert [assignment for count in counts for assignment in one.take(count)] == other.take(sum(counts))


@given(num_prompts, st.integers(0, 10_000))
def test_the_first_n_places_are_trained_once_whatever_is_lost_or_restored(size: int, seed: int) -> None:
    """Takes, losses, training and restores in any order: in the end places 0 to n - 1 are trained, each once."""
    rng = random.Random(seed)
    ledger = Ledger(size, seed=7)
    out: list[Assignment] = []
    trained: list[int] = []
    saved = ledger.state(), list(trained)
    for _ in range(40):
        act = rng.choice(["take", "lose", "train", "save", "restore"])
        if act == "take":
            out += ledger.take(rng.randint(0, 4))
        elif act == "lose" and out:
            ledger.give_back([out.pop(rng.randrange(len(out)))])
        elif act == "train" and out:
            done = out.pop(rng.randrange(len(out)))
            ledger.trained([done])
            trained.append(done.place)
        elif act == "save":
            saved = ledger.state(), list(trained)
        elif act == "restore":
            ledger.restore(json.loads(json.dumps(saved[0])))
            out, trained = [], list(saved[1])
    ledger.trained(out)
    trained += [assignment.place for assignment in out]
    end = max(trained, default=-1) + 1
    while missing := ledger.take(1):
        if missing[0].place >= end:
            break
        trained.append(missing[0].place)
    assert sorted(trained) == list(range(end))


def test_what_came_back_goes_out_before_anything_new() -> None:
    """Earlier places first, as the assignments that they were."""
    ledger = Ledger(10, seed=1)
    taken = ledger.take(4)
    ledger.give_back([taken[2], taken[0]])
    assert ledger.take(3) == [taken[0], taken[2], *Ledger(10, seed=1).take(5)[4:]]


def test_a_restored_ledger_hands_out_what_was_untrained_then() -> None:
    """What was out counts as untrained; what was trained is gone; then the next new place."""
    ledger = Ledger(10, seed=1)
    taken = ledger.take(4)
    ledger.trained([taken[1]])
    restored = Ledger(10, seed=1)
    restored.restore(ledger.state())
    assert [assignment.place for assignment in restored.take(4)] == [0, 2, 3, 4]


def test_places_that_came_back_can_be_asked_for_by_number() -> None:
    """So finished responses of a checkpoint find their assignments."""
    ledger = Ledger(10, seed=1)
    taken = ledger.take(5)
    ledger.give_back(taken[:4])
    assert ledger.take_places([3, 1]) == [taken[1], taken[3]]
    assert [assignment.place for assignment in ledger.take(3)] == [0, 2, 5]


@pytest.mark.parametrize("act", ["trained", "give_back"])
def test_only_what_is_out_can_be_trained_or_come_back(act: str) -> None:
    """Not twice, not after it came back, not what was never handed out."""
    for make in ("trained", "give_back", "nothing"):
        ledger = Ledger(10, seed=1)
        [assignment] = ledger.take(1) if make != "nothing" else [Assignment(0, 0, 0)]
        if make != "nothing":
            getattr(ledger, make)([assignment])
        with pytest.raises(ValueError, match=r"places \[0\]"):
            getattr(ledger, act)([assignment])


def test_a_place_that_did_not_come_back_cannot_be_asked_for() -> None:
    """One that is out, or that nobody took."""
    ledger = Ledger(10, seed=1)
    ledger.take(1)
    for place in (0, 1):
        with pytest.raises(ValueError, match="expected ones that came back"):
            ledger.take_places([place])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """The same prompts in another order, the second time and in another run."""
    taken = Ledger(50, seed=1).take(100)
    first, second = [a.prompt_index for a in taken[:50]], [a.prompt_index for a in taken[50:]]
    other = [a.prompt_index for a in Ledger(50, seed=2).take(50)]
    assert first != sorted(first)
    assert len({tuple(order) for order in (first, second, other)}) == 3
