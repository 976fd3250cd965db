"""Which prompt comes next: every prompt of an epoch exactly once, in an order that the seed and the epoch give."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from minillm_ray.data.batches import Order, epoch_order


@dataclass(frozen=True, order=True)
class Assignment:
    """A prompt to be answered. place: in the endless order of prompts, from 0; epoch: passes that were complete then.

    The place names the assignment for good: whoever answers it, however often it is lost, it is trained once.
    """

    place: int
    epoch: int
    prompt_index: int


class Ledger:
    """Hands out prompts epoch after epoch, takes back what was lost, and knows what is trained.

    Its state is two numbers and a set: places below `num_taken` were handed out; those in `returned` came back and go
    out again first; those in `untrained` were handed out and are not trained yet (returned ones among them).
    """

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        self._num_prompts = num_prompts
        self._seed = seed
        self.num_taken = 0
        self._untrained: set[int] = set()
        self._returned: set[int] = set()
        self._orders: dict[int, Order] = {}

    def take(self, count: int) -> list[Assignment]:
        """The next `count` assignments: what came back first, then new ones; where an epoch ends the next begins."""
        places = sorted(self._returned)[:count]
        self._returned.difference_update(places)
        fresh = range(self.num_taken, self.num_taken + count - len(places))
        self.num_taken = fresh.stop
        self._untrained.update(fresh)
        return [self._assignment(place) for place in [*places, *fresh]]

    def take_places(self, places: Iterable[int]) -> list[Assignment]:
        """Those of the returned assignments. Raises ValueError for a place that did not come back."""
        wanted = sorted(places)
        if not self._returned.issuperset(wanted):
            raise ValueError(f"places {wanted} are asked for; expected ones that came back")
        self._returned.difference_update(wanted)
        return [self._assignment(place) for place in wanted]

    def give_back(self, assignments: Iterable[Assignment]) -> None:
        """They were lost before they were trained and will be handed out again."""
        places = {assignment.place for assignment in assignments}
        if not places <= self._untrained - self._returned:
            raise ValueError(f"places {sorted(places)} come back; expected ones that are out and not trained")
        self._returned |= places

    def trained(self, assignments: Iterable[Assignment]) -> None:
        """They are trained. Raises ValueError for one that was trained before or is not out."""
        places = {assignment.place for assignment in assignments}
        if not places <= self._untrained - self._returned:
            raise ValueError(f"places {sorted(places)} are trained; expected ones that are out and not trained yet")
        self._untrained -= places

    @property
    def num_trained(self) -> int:
        return self.num_taken - len(self._untrained)

    @property
    def num_untrained(self) -> int:
        """Handed out at some time and not trained yet."""
        return len(self._untrained)

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values. What is out at this moment counts as untrained."""
        return {"num_taken": self.num_taken, "untrained": sorted(self._untrained)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to `state`: all that was out then, and was not trained, is handed out again."""
        self.num_taken = int(state["num_taken"])
        self._untrained = {int(place) for place in state["untrained"]}
        self._returned = set(self._untrained)

    def _assignment(self, place: int) -> Assignment:
        epoch, index = divmod(place, self._num_prompts)
        if epoch not in self._orders:
            # Two at most: the one that ends and the one that begins.
            recent = {known: order for known, order in self._orders.items() if abs(known - epoch) == 1}
            self._orders = recent | {epoch: epoch_order(self._num_prompts, epoch, self._seed)}
        return Assignment(place, epoch, int(self._orders[epoch][index]))
