"""Thinning keeps the ends, the spikes and the gaps."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.report.series import buckets_of, segments

values = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=200)


def rows_of(values: list[float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "m": value} for step, value in enumerate(values, start=1)]


@given(values, st.integers(1, 40))
def test_thinning_keeps_the_extremes_and_covers_every_step_once(values: list[float | None], at_most: int) -> None:
    """No more buckets than asked for, in order; the least and the greatest of all are those of some bucket."""
    buckets = buckets_of(rows_of(values), "m", at_most=at_most)
    assert len(buckets) <= at_most
    covered = [step for bucket in buckets for step in range(bucket.first, bucket.last + 1)]
    assert covered == list(range(1, len(values) + 1))
    finite = [value for value in values if value is not None]
    if finite:
        assert min(bucket.low for bucket in buckets if not bucket.is_gap) == min(finite)
        assert max(bucket.high for bucket in buckets if not bucket.is_gap) == max(finite)


def test_few_steps_are_left_as_they_are() -> None:
    buckets = buckets_of(rows_of([0.5, 0.25]), "m", at_most=2)
    assert [(bucket.first, bucket.last, bucket.mean) for bucket in buckets] == [(1, 1, 0.5), (2, 2, 0.25)]


def test_a_value_that_was_not_finite_is_a_gap_and_one_that_was_not_measured_is_none() -> None:
    """null breaks the line; a row without the metric does not."""
    rows = [{"step": 1, "m": 1.0}, {"step": 2}, {"step": 3, "m": 3.0}, {"step": 4, "m": None}, {"step": 5, "m": 5.0}]
    lines = [[bucket.first for bucket in line] for line in segments(buckets_of(rows, "m", at_most=10))]
    assert lines == [[1, 3], [5]]


def test_a_bucket_has_the_mean_of_its_finite_values_alone() -> None:
    (bucket,) = buckets_of(rows_of([1.0, None, math.inf, 3.0]), "m", at_most=1)
    assert (bucket.first, bucket.last, bucket.mean, bucket.low, bucket.high) == (1, 4, 2.0, 1.0, 3.0)


def test_a_metric_that_no_row_has_gives_nothing() -> None:
    assert buckets_of(rows_of([1.0]), "other", at_most=10) == []
