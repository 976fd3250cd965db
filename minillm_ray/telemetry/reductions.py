"""Statistics that travel between ranks and workers, and are combined exactly: nobody averages averages.

A mean travels as sum and count. Combining is independent of the order and of the grouping of the parts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean on its way: the sum of the values and how many they are."""

    sum: float
    count: float

    @property
    def value(self) -> float:
        """The mean; nan over no values."""
        return self.sum / self.count if self.count else math.nan


@dataclass(frozen=True)
class Sum:
    """A total over ranks."""

    value: float


@dataclass(frozen=True)
class Max:
    """The largest over ranks; nan if one of them is."""

    value: float


Reduction = Mean | Sum | Max


def combine(parts: Sequence[Mapping[str, Reduction]]) -> dict[str, Reduction]:
    """The statistics of all `parts` together, one part a rank. A name need not be in every part.

    Raises TypeError if a name is one kind of statistic in one part and another in the next.
    """
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _combine_one(name, [part[name] for part in parts if name in part]) for name in names}


def values(statistics: Mapping[str, Reduction]) -> dict[str, float]:
    """The plain numbers, as a MetricsWriter takes them."""
    return {name: statistic.value for name, statistic in statistics.items()}


def _combine_one(name: str, parts: Sequence[Reduction]) -> Reduction:
    kinds = {type(part).__name__ for part in parts}
    if len(kinds) > 1:
        raise TypeError(f"metric {name!r} is a {' and a '.join(sorted(kinds))} at once; expected one kind on all ranks")
    means = [part for part in parts if isinstance(part, Mean)]
    if means:
        return Mean(sum=_exact_sum([part.sum for part in means]), count=_exact_sum([part.count for part in means]))
    numbers = [part.value for part in parts]
    if isinstance(parts[0], Sum):
        return Sum(_exact_sum(numbers))
    return Max(math.nan if any(math.isnan(number) for number in numbers) else max(numbers))


def _exact_sum(numbers: Sequence[float]) -> float:
    """Sum with one rounding, so that the order cannot matter. Infinities of both signs give nan, as with floats."""
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)
