"""After which tokens a proposal had better end. Only speed depends on it."""

import numpy as np
import numpy.typing as npt

_KEPT = 1023 / 1024
"""What a judged coin leaves of the weight of those before it: the share follows the student of the last rounds."""

_ENDS_PER_FALL = 1.5
"""With one early end per fall three tokens in ten are drawn in vain and a round takes longer; with 2 hardly any are,
for a quarter more verdicts, and it is no shorter (benchmarks/results/mixture.md)."""


class RiskyCoins:
    """The teacher's coins whose token is likely to fall, by the coin alone.

    Where a coin says teacher, the student's token falls if the coin's uniform `accept` exceeds p(y) / q(y). That
    number is drawn before the token is, so the tokens behind a high one are likely to be in vain: a proposal ends there
    and is judged. How high is high follows from the share of coins whose token fell so far: in the mean 1.5 coins are
    risky for each that falls.
    """

    def __init__(self) -> None:
        self._num_coins = self._num_fallen = 0.0

    def among(self, teacher: npt.NDArray[np.bool_], accept: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """bool [n], which of n slots hold a risky coin. None does until a first token has fallen."""
        share = self._num_fallen / self._num_coins if self._num_coins else 0.0
        return teacher & (accept > 1.0 - _ENDS_PER_FALL * share)

    def observe(self, *, num_coins: int, num_fallen: int) -> None:
        """Learn from a verdict: the coins whose tokens it judged, the one that fell included."""
        kept = _KEPT**num_coins
        self._num_coins = kept * self._num_coins + num_coins
        self._num_fallen = kept * self._num_fallen + num_fallen
