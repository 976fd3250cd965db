"""The staleness bound: which prompts may start now, and which responses are trained next. No clock, no Ray.

A round trains B responses and makes one weight version: the round of version v trains on it and makes v + 1. A response
that was started at version v must be trained by the round of version v + max_staleness: its deadline. No response is
ever thrown away for being late, so none may be admitted that could become late. With n the next round to begin:

    invariant, for every u >= n:   number of waiting responses with deadline <= u   <=   (u - n + 1) B

`admit` keeps it: a place is free only where the sum still holds, hence only after a replica has pulled newer weights.
`begin_round` keeps it too: it waits for those whose absence from this round would break it, and takes the earliest
deadlines of what is there. With max_staleness 0 all B responses of a round start at its own version, and none starts
while a round is trained: the synchronous case.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from minillm_ray.pipeline.ledger import Assignment


@dataclass(frozen=True, eq=False)
class Ticket:
    """One admission of an assignment; after a loss it gets another. version: of the weights it started with."""

    assignment: Assignment
    version: int


class Admission:
    """Tickets from admission to training. version: of the first round; rounds: how many will be trained in all."""

    def __init__(self, *, round_size: int, max_staleness: int, version: int, rounds: int) -> None:
        self._round_size = round_size
        self._max_staleness = max_staleness
        self._next = version
        self._end = version + rounds
        self._waiting: set[Ticket] = set()
        """Every ticket that is neither lost nor taken by a round."""
        self._scored: set[Ticket] = set()
        self._num_waiting: Counter[int] = Counter()
        """By the version that they started with."""
        self._training: list[Ticket] = []

    @property
    def version(self) -> int:
        """Of the newest weights: those that the round in training trains on, or else the next one will."""
        return self._next - bool(self._training)

    @property
    def rounds_left(self) -> int:
        """Rounds that are not trained."""
        return self._end - self.version

    def free(self, replica_version: int) -> int:
        """How many prompts a replica that holds `replica_version` may start now."""
        deadline = replica_version + self._max_staleness
        free = (self._end - self._next) * self._round_size - len(self._waiting)
        for u in range(deadline, self._next + self._max_staleness + 1):
            free = min(free, self._capacity(u) - self._num_due(self._num_waiting, u))
        return max(0, free)

    def admit(self, assignments: Iterable[Assignment], replica_version: int) -> list[Ticket]:
        """Start these at `replica_version`. Raises ValueError for more than `free`."""
        tickets = [Ticket(assignment, replica_version) for assignment in assignments]
        if len(tickets) > self.free(replica_version):
            raise ValueError(f"{len(tickets)} prompts for {self.free(replica_version)} free places")
        self._waiting.update(tickets)
        self._num_waiting[replica_version] += len(tickets)
        return tickets

    def scored(self, ticket: Ticket) -> None:
        """Its response is drawn and scored: it can be trained."""
        self._require_waiting(ticket)
        self._scored.add(ticket)

    def lost(self, ticket: Ticket) -> None:
        """Its response is gone; the prompt is the ledger's again."""
        self._require_waiting(ticket)
        self._take_out(ticket)

    def begin_round(self) -> list[Ticket] | None:
        """The next round's responses in the order in which they are trained, or None while some are missing.

        The order is that of the ledger among those of one version, whatever was lost and drawn again meanwhile.
        """
        if self._training:
            raise ValueError(f"the round of version {self.version} is still in training")
        if len(self._scored) < self._round_size or not self.rounds_left:
            return None
        num_scored = Counter(ticket.version for ticket in self._scored)
        for u in range(self._next, self._next + self._max_staleness + 1):
            num_missing = self._num_due(self._num_waiting, u) - self._num_due(num_scored, u)
            if num_missing > self._capacity(u) - self._round_size:
                return None
        in_order = sorted(self._scored, key=lambda ticket: (ticket.version, ticket.assignment.place))
        self._training = in_order[: self._round_size]
        for ticket in self._training:
            self._take_out(ticket)
        self._next += 1
        return list(self._training)

    def trained(self) -> None:
        """The round in training is over: the version goes up."""
        self._training = []

    def give_up_round(self) -> None:
        """The round in training trained nothing: its responses wait again, and are scored."""
        self._next -= 1
        self._waiting.update(self._training)
        self._scored.update(self._training)
        self._num_waiting.update(ticket.version for ticket in self._training)
        self._training = []

    def _capacity(self, u: int) -> int:
        """How many responses can be trained from the next round to that of version u."""
        return (u - self._next + 1) * self._round_size

    def _num_due(self, num_by_version: Counter[int], u: int) -> int:
        """How many of them must be trained by the round of version u."""
        return sum(num for version, num in num_by_version.items() if version + self._max_staleness <= u)

    def _take_out(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._scored.discard(ticket)
        self._num_waiting[ticket.version] -= 1
        if not self._num_waiting[ticket.version]:
            del self._num_waiting[ticket.version]

    def _require_waiting(self, ticket: Ticket) -> None:
        if ticket not in self._waiting:
            raise ValueError(f"{ticket} does not wait: it was lost, or a round has taken it")
