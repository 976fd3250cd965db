"""The staleness bound over random schedules of the pure state machine: never broken, never a deadlock, nothing lost."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.pipeline.admission import Admission, Ticket
from minillm_ray.pipeline.ledger import Assignment, Ledger


@dataclass
class Schedule:
    """Replicas that pull when they like, responses that end or are lost in any order, a learner that takes its time."""

    round_size: int
    max_staleness: int
    rounds: int
    num_replicas: int
    rng: random.Random
    trained: list[tuple[int, Ticket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(7, seed=1)
        self.admission = Admission(
            round_size=self.round_size, max_staleness=self.max_staleness, version=1, rounds=self.rounds
        )
        self.replicas = [1] * self.num_replicas
        self.drawing: list[Ticket] = []
        self.in_training: list[Ticket] = []

    def run(self, num_moves: int) -> None:
        """Random moves, then moves that only go forward until all rounds are trained."""
        for _ in range(num_moves):
            self.move(self.rng.choice(["pull", "admit", "admit", "score", "score", "lose", "round", "give_up"]))
        self.train()
        while self.admission.rounds_left:
            before = len(self.trained)
            for act in ("pull_all", "admit_all", "score_all", "round", "round"):
                self.move(act)
            assert len(self.trained) == before + self.round_size, "a deadlock: all pulled, all scored, no round"

    def move(self, act: str) -> None:
        admission, rng = self.admission, self.rng
        if act == "pull":
            self.replicas[rng.randrange(self.num_replicas)] = admission.version
        elif act == "pull_all":
            self.replicas = [admission.version] * self.num_replicas
        elif act in ("admit", "admit_all"):
            version = rng.choice(self.replicas)
            free = admission.free(version)
            self.admit(version, free if act == "admit_all" else rng.randint(0, free))
        elif act == "score" and self.drawing:
            admission.scored(self.drawing.pop(rng.randrange(len(self.drawing))))
        elif act == "score_all":
            while self.drawing:
                admission.scored(self.drawing.pop())
        elif act == "lose" and self.drawing:
            lost = self.drawing.pop(rng.randrange(len(self.drawing)))
            admission.lost(lost)
            self.ledger.give_back([lost.assignment])
        elif act == "round":
            self.train() if self.in_training else self.begin()
        elif act == "give_up" and self.in_training:
            admission.give_up_round()
            for lost in rng.sample(self.in_training, rng.randint(0, self.round_size)):
                admission.lost(lost)
                self.ledger.give_back([lost.assignment])
            self.in_training = []

    def admit(self, version: int, count: int) -> None:
        self.drawing += self.admission.admit(self.ledger.take(count), version)

    def begin(self) -> None:
        self.in_training = self.admission.begin_round() or []

    def train(self) -> None:
        if self.in_training:
            self.trained += [(self.admission.version, ticket) for ticket in self.in_training]
            self.ledger.trained(ticket.assignment for ticket in self.in_training)
            self.admission.trained()
            self.in_training = []


schedules = st.builds(
    Schedule,
    round_size=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    rounds=st.integers(1, 6),
    num_replicas=st.integers(1, 3),
    rng=st.integers(0, 1 << 30).map(random.Random),
)


@given(schedules, st.integers(0, 120))
def test_no_schedule_breaks_the_bound_deadlocks_or_trains_twice(schedule: Schedule, num_moves: int) -> None:
    """Whatever order replicas pull in, responses end in and are lost in, and however long a round is trained."""
    schedule.run(num_moves)
    assert all(0 <= version - ticket.version <= schedule.max_staleness for version, ticket in schedule.trained)
    places = sorted(ticket.assignment.place for _, ticket in schedule.trained)
    assert places == list(range(schedule.rounds * schedule.round_size))


@given(schedules, st.integers(0, 120))
def test_one_more_than_free_is_refused(schedule: Schedule, num_moves: int) -> None:
    """At any moment, for any version that a replica may hold."""
    for _ in range(num_moves):
        schedule.move(schedule.rng.choice(["pull", "admit", "score", "lose", "round"]))
    version = schedule.rng.choice(schedule.replicas)
    free = schedule.admission.free(version)
    with pytest.raises(ValueError, match="free places"):
        schedule.admit(version, free + 1)


@given(schedules, st.integers(0, 60))
def test_without_staleness_rounds_come_one_at_a_time(schedule: Schedule, num_moves: int) -> None:
    """Nothing may start while a round trains, or before a replica holds what it made."""
    schedule.max_staleness = 0
    schedule.__post_init__()
    for _ in range(num_moves):
        schedule.move(schedule.rng.choice(["pull", "admit", "score", "round"]))
        if schedule.in_training:
            assert all(schedule.admission.free(version) == 0 for version in range(schedule.admission.version + 1))


def filled(*, version: int = 5, max_staleness: int = 1, rounds: int = 10) -> Admission:
    """Rounds of two; both of the first round's responses began a version earlier and are there."""
    admission = Admission(round_size=2, max_staleness=max_staleness, version=version, rounds=rounds)
    for ticket in admission.admit(assignments(0, 2), version - 1):
        admission.scored(ticket)
    return admission


def assignments(start: int, end: int) -> list[Assignment]:
    return [Assignment(place, 0, place) for place in range(start, end)]


def test_a_replica_that_did_not_pull_gets_nothing_that_would_be_late() -> None:
    """The old version is full; one that has pulled may start a round more."""
    admission = filled()
    assert (admission.free(3), admission.free(4), admission.free(5)) == (0, 0, 2)


def test_a_replica_that_pulled_may_start_while_a_round_trains() -> None:
    """The round in training counts no more against the places; nothing new can be trained by it."""
    admission = filled()
    assert admission.begin_round() is not None
    assert (admission.free(4), admission.free(5)) == (0, 2)


def test_a_round_waits_for_those_that_would_be_late_without_it() -> None:
    """Two newer responses are there, but an older one is due now."""
    admission = Admission(round_size=2, max_staleness=1, version=5, rounds=10)
    [old] = admission.admit(assignments(0, 1), 4)
    for ticket in admission.admit(assignments(1, 3), 5):
        admission.scored(ticket)
    assert admission.begin_round() is None
    admission.scored(old)
    assert admission.begin_round() is not None


def test_a_round_takes_the_oldest_weights_first_and_then_the_ledgers_order() -> None:
    """Also where an earlier place was lost and came back last."""
    admission = Admission(round_size=3, max_staleness=1, version=5, rounds=10)
    newer = admission.admit(assignments(3, 5), 5)
    first, second, third = admission.admit(assignments(0, 3), 4)
    admission.lost(first)
    [again] = admission.admit([first.assignment], 4)
    for ticket in (*newer, third, again, second):
        admission.scored(ticket)
    assert admission.begin_round() == [again, second, third]


def test_no_more_is_admitted_than_the_rounds_that_are_left_train() -> None:
    """So that the run ends with nothing drawn in vain."""
    admission = filled(max_staleness=3, rounds=2)
    assert admission.free(5) == 2
    admission.begin_round()
    admission.trained()
    assert (admission.rounds_left, admission.free(6)) == (1, 2)


def test_a_round_that_is_given_up_waits_as_before() -> None:
    """Its responses are there still, and the version is the same."""
    admission = filled()
    first = admission.begin_round()
    admission.give_up_round()
    assert admission.version == 5
    assert admission.begin_round() == first


def test_a_ticket_is_lost_or_scored_only_while_it_waits() -> None:
    """Not twice, and not once a round has it."""
    admission = Admission(round_size=1, max_staleness=0, version=1, rounds=2)
    [ticket] = admission.admit(assignments(0, 1), 1)
    admission.scored(ticket)
    admission.begin_round()
    for act in (admission.scored, admission.lost):
        with pytest.raises(ValueError, match="does not wait"):
            act(ticket)
    with pytest.raises(ValueError, match="still in training"):
        admission.begin_round()
