"""Which prompt comes next: every prompt of an epoch exactly once, in an order that the seed and the epoch give."""

from dataclasses import dataclass

from minillm_ray.data.batches import epoch_order


@dataclass(frozen=True)
class Assignment:
    """A prompt to be answered. epoch: how often the whole set was used before; it tells responses apart."""

    prompt_index: int
    epoch: int


class Ledger:
    """Hands out prompts epoch after epoch. num_taken: how many so far; it is the whole state."""

    def __init__(self, num_prompts: int, *, seed: int, num_taken: int = 0) -> None:
        self._num_prompts = num_prompts
        self._seed = seed
        self.num_taken = num_taken

    def take(self, count: int) -> list[Assignment]:
        """The next `count` prompts; where an epoch ends the next one begins."""
        taken: list[Assignment] = []
        while len(taken) < count:
            epoch, place = divmod(self.num_taken, self._num_prompts)
            order = epoch_order(self._num_prompts, epoch, self._seed)[place : place + count - len(taken)]
            taken += [Assignment(int(index), epoch) for index in order]
            self.num_taken += len(order)
        return taken
