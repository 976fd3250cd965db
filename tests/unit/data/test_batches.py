"""Order is a function of epoch and seed; batches lose nothing unless told to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_ray.data.batches import cut_batches, epoch_order


@given(num_examples=st.integers(0, 300), epoch=st.integers(0, 1000), seed=st.integers(0, 2**63))
@settings(deadline=None, derandomize=True)
def test_an_epoch_meets_every_example_once_and_the_same_way_again(num_examples, epoch, seed):
    order = epoch_order(num_examples, epoch, seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_examples))
    assert order.tolist() == epoch_order(num_examples, epoch, seed).tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, epoch, seed)) for epoch in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_the_order_is_a_constant_that_no_numpy_release_may_change():
    """A run resumed after an upgrade must not meet an example twice."""
    assert epoch_order(8, epoch=1, seed=2).tolist() == [4, 6, 2, 5, 7, 1, 0, 3]


def test_every_place_is_reached_about_as_often():
    """Mean place of example 0 over 2000 epochs of 11 is 5 within 0.3 (four standard errors)."""
    places = [int(np.flatnonzero(epoch_order(11, epoch, 0) == 0)[0]) for epoch in range(2000)]
    assert abs(np.mean(places) - 5) < 0.3


@given(num_examples=st.integers(0, 60), batch_size=st.integers(1, 20))
@settings(deadline=None, derandomize=True)
def test_keeping_the_remainder_loses_nothing_and_only_the_last_batch_is_smaller(num_examples, batch_size):
    order = epoch_order(num_examples, 0, 0)
    batches = cut_batches(order, batch_size, remainder="keep")
    assert [i for batch in batches for i in batch] == order.tolist()
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(len(batch) > 0 for batch in batches)


@given(num_examples=st.integers(0, 60), batch_size=st.integers(1, 20))
@settings(deadline=None, derandomize=True)
def test_dropping_the_remainder_gives_the_full_batches_alone(num_examples, batch_size):
    order = epoch_order(num_examples, 0, 0)
    batches = cut_batches(order, batch_size, remainder="drop")
    assert len(batches) == num_examples // batch_size
    assert [i for batch in batches for i in batch] == order.tolist()[: len(batches) * batch_size]
    assert all(len(batch) == batch_size for batch in batches)


def test_a_batch_size_below_one_is_an_error():
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        cut_batches(epoch_order(3, 0, 0), 0, remainder="keep")
