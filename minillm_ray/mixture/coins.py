"""The random numbers of a mixed response, drawn ahead: they depend on its own seed and the slot alone.

A slot is proposed again after an earlier token fell. It then meets the same numbers, also the one by which the
student draws (`engines/drawing.py`): what it was before, and whether it would have stood, was never looked at, so that
they are still fresh.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_COINS = 0
"""A stream of the seed beside its own, by which the student draws."""


@dataclass(frozen=True)
class Coins:
    """One number a slot, n slots.

    teacher   bool [n], True with probability alpha: this token is the teacher's to draw
    accept    float64 [n], uniform in (0, 1]: whether the student's token may stand for the teacher's
    redraw    float64 [n], uniform in [0, 1): which token replaces it where it may not
    """

    teacher: npt.NDArray[np.bool_]
    accept: npt.NDArray[np.float64]
    redraw: npt.NDArray[np.float64]


def draw_coins(seed: int, *, alpha: float, num_slots: int) -> Coins:
    """The coins of the first `num_slots` slots; more slots do not change the earlier ones."""
    stream = np.random.SeedSequence(seed, spawn_key=(_COINS,))
    coin, accept, redraw = np.random.Generator(np.random.PCG64(stream)).random((num_slots, 3)).T
    return Coins(teacher=coin < alpha, accept=1.0 - accept, redraw=redraw)
