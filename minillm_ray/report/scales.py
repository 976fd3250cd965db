"""From values to places on an axis: round ticks, and the words for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_ROUND = (1.0, 2.0, 5.0, 10.0)
_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
_MOST_CHARACTERS = 6  # what fits beside a figure
_FLAT = 5e-4  # of the values: less would need more digits than fit


@dataclass(frozen=True)
class Axis:
    """low, high: what the ends of the axis stand for, low < high; ticks: values within, ascending."""

    low: float
    high: float
    ticks: tuple[float, ...]
    scale: Literal["linear", "log"] = "linear"

    def place(self, value: float) -> float:
        """Share of the axis before `value`: 0 at low, 1 at high."""
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(low: float, high: float, *, from_zero: bool, at_most: int = 6) -> Axis:
    """A linear axis around [low, high] whose ends are round ticks; from_zero: 0 is on it. Values are finite.

    Values that differ by rounding alone lie on a flat line in the middle of it, not spread over the whole height.
    """
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= _FLAT * max(abs(low), abs(high)):
        room = abs(high) / 10 or 1.0
        low, high = (low if from_zero else low - room), high + room
    step = _round_step((high - low) / (at_most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis around [low, high], 0 < low <= high, with at most about six ticks on round values."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for mantissas in reversed(_MANTISSAS):
        candidates = [mantissa * 10.0**exponent for exponent in exponents for mantissa in mantissas]
        if len(_covering(candidates, low, high)) <= 6:
            break
    ticks = _covering(candidates, low, high)
    sparse = ticks[:: -(-len(ticks) // 6)]
    return Axis(ticks[0], ticks[-1], tuple(sparse), "log")


def step_axis(first: int, last: int, *, at_most: int = 5) -> Axis:
    """An axis that ends at the first and the last step, with ticks on round whole numbers in between."""
    if first == last:
        return Axis(first - 1.0, last + 1.0, (float(first),))
    step = max(1.0, _round_step((last - first) / at_most))
    ticks = tuple(number * step for number in range(math.ceil(first / step), math.floor(last / step) + 1))
    return Axis(float(first), float(last), ticks)


def tick_texts(axis: Axis) -> list[str]:
    """The ticks in as many digits as tell them apart, in few characters: 0.25, 1,500, 20k, 5e-6."""
    if axis.scale == "log":
        return [_texts([tick])[0] for tick in axis.ticks]
    return _texts(axis.ticks)


def _texts(ticks: Sequence[float]) -> list[str]:
    """In one unit and with one number of decimals: the first that is short enough, or the shortest."""
    size = max(map(abs, ticks))
    exponent = math.floor(math.log10(size)) if size else 0
    units = [(unit, suffix) for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= max(unit, 1e4)]
    candidates = [_in_unit(ticks, *unit) for unit in [*(units or [(1.0, "")]), (10.0**exponent, f"e{exponent}")]]
    lengths = [max(map(len, texts)) for texts in candidates]
    short = next((n for n, length in enumerate(lengths) if length <= _MOST_CHARACTERS), lengths.index(min(lengths)))
    return candidates[short]


def _in_unit(ticks: Sequence[float], unit: float, suffix: str) -> list[str]:
    """With the fewest decimals that are enough for every tick."""
    scaled = [tick / unit for tick in ticks]
    room = 1e-3 * (max(scaled) - min(scaled) or abs(scaled[0]))
    decimals = next((n for n in range(7) if all(abs(round(x, n) - x) <= room for x in scaled)), 7)
    return [f"{x:,.{decimals}f}{suffix}".replace("-", "−") if x else "0" for x in scaled]


def _round_step(least: float) -> float:
    """The smallest round number that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(number * power for number in _ROUND if number * power >= least * (1 - 1e-9))


def _covering(candidates: list[float], low: float, high: float) -> list[float]:
    """The candidates from the last one at or below `low` to the first at or above `high`, at least two."""
    first = max(number for number, value in enumerate(candidates) if value <= low * (1 + 1e-9))
    last = min(number for number, value in enumerate(candidates) if value >= high * (1 - 1e-9))
    return candidates[first : max(last, first + 1) + 1]
