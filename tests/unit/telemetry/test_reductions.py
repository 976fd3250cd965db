"""Statistics combined over ranks are those of all values together."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.telemetry.reductions import Max, Mean, Reduction, Sum, combine, values

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_ranks_of_any_size_give_the_statistics_of_all_values(ranks: list[list[float]]) -> None:
    together = [number for rank in ranks for number in rank]
    parts = [{"m": Mean(math.fsum(rank), len(rank)), "s": Sum(math.fsum(rank)), "x": Max(max(rank))} for rank in ranks]
    got = values(combine(parts))
    assert got["m"] == pytest.approx(math.fsum(together) / len(together), abs=1e-6)
    assert got["s"] == pytest.approx(math.fsum(together), abs=1e-6)
    assert got["x"] == max(together)


@given(NUMBERS)
def test_the_order_of_the_ranks_changes_no_bit(numbers: list[float]) -> None:
    parts = [{"m": Mean(number, 1), "s": Sum(number)} for number in numbers]
    assert values(combine(parts)) == values(combine(parts[::-1]))


def test_a_rank_without_values_does_not_move_the_mean() -> None:
    assert values(combine([{"m": Mean(6.0, 3)}, {"m": Mean(0.0, 0)}, {}])) == {"m": 2.0}


def test_a_mean_over_nothing_is_nan() -> None:
    assert math.isnan(Mean(0.0, 0).value)


@pytest.mark.parametrize("position", [0, 1])
def test_a_rank_that_diverged_is_not_hidden_by_the_others(position: int) -> None:
    sick = [math.nan if rank == position else 1.0 for rank in range(2)]
    got = values(combine([{"m": Mean(number, 1), "s": Sum(number), "x": Max(number)} for number in sick]))
    assert all(math.isnan(value) for value in got.values())


def test_one_name_as_two_kinds_of_statistic_is_an_error() -> None:
    parts: list[dict[str, Reduction]] = [{"m": Mean(1.0, 1)}, {"m": Max(1.0)}]
    with pytest.raises(TypeError, match="'m' is a Max and a Mean"):
        combine(parts)
