"""Axes hold every value between round ticks that can be told apart."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.report.scales import log_axis, step_axis, tick_texts, value_axis

finite = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(low=finite, high=finite, from_zero=st.booleans())
def test_a_value_axis_holds_its_values_and_has_two_to_seven_ticks(low: float, high: float, from_zero: bool) -> None:
    """Its ends are ticks, and with from_zero 0 is on it."""
    low, high = min(low, high), max(low, high)
    axis = value_axis(low, high, from_zero=from_zero)
    room = 1e-6 * (axis.high - axis.low)
    assert axis.low <= low + room
    assert high <= axis.high + room
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high)
    assert 2 <= len(axis.ticks) <= 7
    assert not from_zero or axis.low <= 0 <= axis.high


@given(low=st.floats(1e-9, 1e9), factor=st.floats(1, 1e9))
def test_a_log_axis_holds_its_values_and_has_few_ticks(low: float, factor: float) -> None:
    """Its middle is the geometric one."""
    axis = log_axis(low, low * factor)
    assert axis.low <= low * (1 + 1e-6)
    assert low * factor <= axis.high * (1 + 1e-6)
    assert 1 <= len(axis.ticks) <= 7
    assert axis.place(math.sqrt(axis.low) * math.sqrt(axis.high)) == pytest.approx(0.5)


@given(low=finite, high=finite)
def test_the_texts_of_a_value_axis_are_told_apart(low: float, high: float) -> None:
    """Whatever the values are, and none is much longer than what fits."""
    texts = tick_texts(value_axis(min(low, high), max(low, high), from_zero=False))
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 9


def test_values_that_differ_by_rounding_alone_are_a_flat_line_in_the_middle() -> None:
    axis = value_axis(1 - 1e-8, 1 + 1e-8, from_zero=False)
    assert 0.3 < axis.place(1.0) < 0.7


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 0.93, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 1400.0, ["0", "500", "1,000", "1,500"]),
        (0.0, 60_000.0, ["0", "20k", "40k", "60k"]),
        (-2.0, 2.0, ["−2", "−1", "0", "1", "2"]),
        (0.0, 5e-6, ["0", "1e-6", "2e-6", "3e-6", "4e-6", "5e-6"]),
        (0.0, 1e-3, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010"]),
        (0.0, 0.0, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_ticks_are_round_and_their_texts_short(low: float, high: float, texts: list[str]) -> None:
    assert tick_texts(value_axis(low, high, from_zero=True)) == [text.replace("e-", "e−") for text in texts]


def test_the_axis_of_steps_ends_at_the_first_and_the_last_step() -> None:
    """With round whole steps in between, and room around a single step."""
    axis = step_axis(1, 150)
    assert (axis.low, axis.high, axis.ticks) == (1, 150, (50, 100, 150))
    assert step_axis(3, 5).ticks == (3, 4, 5)
    assert step_axis(7, 7).place(7) == 0.5
