"""A metric along the steps of a phase, thinned to what a figure can show.

A row that lacks the metric was not measured there, and a line goes on over it; null in a row is a value that was not
finite, and a line has a gap there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Bucket:
    """Steps first..last drawn as one point. mean, low, high: over their finite values, nan where there is none."""

    first: int
    last: int
    mean: float
    low: float
    high: float

    @property
    def step(self) -> float:
        """Where the point stands."""
        return (self.first + self.last) / 2

    @property
    def is_gap(self) -> bool:
        return math.isnan(self.mean)


def buckets_of(rows: Sequence[Mapping[str, Any]], metric: str, *, at_most: int) -> list[Bucket]:
    """The metric in the rows of one phase, ascending: a bucket a step, or `at_most` of equal width if there are more.

    low and high are the least and the greatest of a bucket, so that no spike is lost.
    """
    measured = sorted((row["step"], row[metric]) for row in rows if metric in row)
    if not measured:
        return []
    if len(measured) <= at_most:
        return [_bucket([point]) for point in measured]
    start, end = measured[0][0], measured[-1][0]

    def number(point: tuple[int, float | None]) -> int:
        return (point[0] - start) * at_most // (end - start + 1)

    return [_bucket(list(points)) for _, points in groupby(measured, number)]


def segments(buckets: Sequence[Bucket]) -> Iterator[list[Bucket]]:
    """The stretches between gaps, each to be drawn as one line."""
    for is_gap, stretch in groupby(buckets, lambda bucket: bucket.is_gap):
        if not is_gap:
            yield list(stretch)


def _bucket(points: Sequence[tuple[int, float | None]]) -> Bucket:
    finite = [value for _, value in points if value is not None and math.isfinite(value)]
    first, last = points[0][0], points[-1][0]
    if not finite:
        return Bucket(first, last, math.nan, math.nan, math.nan)
    return Bucket(first, last, math.fsum(finite) / len(finite), min(finite), max(finite))
