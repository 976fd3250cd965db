"""The learning rate is a function of the step alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.learner.schedule import LearningRateSchedule


def test_warm_up_rises_in_equal_steps_and_then_the_rate_is_constant() -> None:
    """The first step already learns, and step number `warmup_steps` (from 1) has the full rate."""
    schedule = LearningRateSchedule(peak=1.0, warmup_steps=4, steps=10, shape="constant", final=0.0)
    assert [schedule.at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.at(10**6) == 1.0


def test_cosine_falls_from_the_peak_to_the_final_rate() -> None:
    """Half way down in the middle; it stays at the end value afterwards."""
    schedule = LearningRateSchedule(peak=1.0, warmup_steps=2, steps=10, shape="cosine", final=0.2)
    assert [schedule.at(0), schedule.at(1), schedule.at(2)] == [0.5, 1.0, 1.0]
    assert schedule.at(6) == pytest.approx(0.6)
    assert schedule.at(4) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule.at(10) == pytest.approx(0.2)
    assert schedule.at(50) == pytest.approx(0.2)


@given(
    warmup=st.integers(0, 20),
    steps=st.integers(1, 60),
    final=st.floats(0, 1),
    shape=st.sampled_from(["constant", "cosine"]),
)
def test_the_rate_never_leaves_its_range(warmup: int, steps: int, final: float, shape: str) -> None:
    """Above 0 and at most the peak in warm-up; afterwards never rising, never below the final rate."""
    schedule = LearningRateSchedule(peak=1.0, warmup_steps=warmup, steps=steps, shape=shape, final=final)  # type: ignore[arg-type]
    rising = [schedule.at(step) for step in range(warmup)]
    assert all(0 < rate <= 1.0 for rate in rising)
    assert rising == sorted(rising)
    falling = [schedule.at(step) for step in range(warmup, warmup + steps + 3)]
    assert all(final - 1e-12 <= rate <= 1.0 for rate in falling)
    assert falling == sorted(falling, reverse=True)


def test_a_warm_up_as_long_as_the_phase_is_no_division_by_zero() -> None:
    """The cosine then has no step to fall over."""
    schedule = LearningRateSchedule(peak=1.0, warmup_steps=5, steps=5, shape="cosine", final=0.0)
    assert schedule.at(4) == 1.0
    assert math.isfinite(schedule.at(5))
