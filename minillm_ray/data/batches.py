"""The order in which examples are met, as a function of epoch and seed alone.

A run that resumes needs no saved shuffle: (seed, epoch) gives the order again, and a position in it is a number.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]


def epoch_order(num_examples: int, epoch: int, seed: int) -> Order:
    """A permutation of 0 .. num_examples - 1, int64 [num_examples], that depends on the three arguments alone.

    It sorts raw generator output, which NumPy keeps the same for ever; `Generator.permutation` may change between
    versions, and a resumed run would then skip examples.
    """
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(num_examples)
    return np.argsort(draws, kind="stable").astype(np.int64)


def cut_batches(order: Order, batch_size: int, *, remainder: Literal["keep", "drop"]) -> list[Order]:
    """The order cut into batches of batch_size, in order.

    remainder  What happens to a last batch that is smaller: `keep` it (SFT: every example counts once), or `drop` it
               (every step must have the same size).

    Raises ValueError if batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    if remainder == "drop":
        order = order[: len(order) - len(order) % batch_size]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
