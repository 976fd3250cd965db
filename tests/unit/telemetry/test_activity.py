"""Every second of a replica is accounted for once: busy, waiting for input, or waiting for weights."""

import random
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from minillm_ray.telemetry.activity import Activity, Observation, Posture, Slice
from minillm_ray.telemetry.declarations import METRICS

IN_HAND, AWAITS_WEIGHTS, AWAITS_INPUT = Posture.IN_HAND, Posture.AWAITS_WEIGHTS, Posture.AWAITS_INPUT


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """An Activity, what it made of the time so far, and a clock that passes from one line of a schedule to the next."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.slices: list[Slice] = []
        self.activity = Activity(self.clock, self.slices.append)

    def see(self, at: float, *seen: Observation) -> None:
        """`at` seconds after the beginning these replicas are there; the first of a role and number has one life."""
        self.clock.now = 100.0 + at
        self.activity.note({(one.role, one.number): one for one in seen})

    def take(self, at: float) -> dict[str, float]:
        self.clock.now = 100.0 + at
        return self.activity.take()

    def drawn(self) -> list[tuple[str, float, float]]:
        """Name, begin and end of each slice, in seconds after the beginning."""
        return [(one.name, one.begin - 100.0, one.end - 100.0) for one in self.slices]


def rollout(
    posture: Posture, beat: tuple[float, float] = (1.0, 0.0), *, number: int = 0, work: str = ""
) -> Observation:
    """beat: when, and the engine's count then."""
    return Observation("rollout", number, posture, work, busy_seconds=beat[1], beat_at=beat[0])


def learner(work: str) -> Observation:
    return Observation("learner", 0, IN_HAND if work else AWAITS_INPUT, work)


def test_a_hand_computed_schedule_of_a_rollout_replica() -> None:
    """In hand 3 s of which the engine worked 2.4, then 1.5 s until newer weights came, 0.5 s of their loading."""
    watched = Watched()
    watched.see(0.0, rollout(IN_HAND))
    watched.see(3.0, rollout(AWAITS_WEIGHTS))
    watched.see(3.5, rollout(AWAITS_WEIGHTS, work="pulling weights"))
    watched.see(4.5, rollout(AWAITS_INPUT))
    watched.see(5.0, rollout(AWAITS_INPUT, beat=(5.0, 2.4)))
    assert watched.take(5.0) == pytest.approx(
        {
            "pipeline/busy_seconds/rollout": 2.4,
            "pipeline/waiting_input_seconds/rollout": 0.6 + 0.5,
            "pipeline/waiting_weights_seconds/rollout": 1.5,
        }
    )
    assert watched.drawn() == [
        ("busy", 0.0, pytest.approx(2.4)),
        ("waiting for input", pytest.approx(2.4), 3.0),
        ("waiting for weights", 3.0, 3.5),
        ("pulling weights", 3.5, 4.5),
        ("waiting for input", 4.5, 5.0),
    ]


def test_what_an_engine_does_while_it_has_nothing_in_hand_is_the_loading_of_weights() -> None:
    """It was busy 2.5 s and had work in hand for 2: the other half second is taken off the waiting for weights."""
    watched = Watched()
    watched.see(0.0, rollout(IN_HAND))
    watched.see(2.0, rollout(AWAITS_WEIGHTS))
    watched.see(3.0, rollout(AWAITS_INPUT))
    watched.see(4.0, rollout(AWAITS_INPUT, beat=(4.0, 2.5)))
    assert watched.take(4.0) == pytest.approx(
        {
            "pipeline/busy_seconds/rollout": 2.5,
            "pipeline/waiting_input_seconds/rollout": 1.0,
            "pipeline/waiting_weights_seconds/rollout": 0.5,
        }
    )


def test_the_learner_is_busy_exactly_while_a_call_is_under_way() -> None:
    """It sends no count: two steps, a publication and the gaps between them are as the driver saw them."""
    watched = Watched()
    watched.see(0.0, learner("optimizer step 1"))
    watched.see(2.0, learner("optimizer step 2"))
    watched.see(3.0, learner("publishing weight version 2"))
    watched.see(3.5, learner(""))
    assert watched.take(5.0) == {
        "pipeline/busy_seconds/learner": 3.5,
        "pipeline/waiting_input_seconds/learner": 1.5,
    }
    watched.see(6.0, learner("optimizer step 3"))
    assert watched.drawn() == [
        ("optimizer step 1", 0.0, 2.0),
        ("optimizer step 2", 2.0, 3.0),
        ("publishing weight version 2", 3.0, 3.5),
        ("waiting for input", 3.5, 6.0),
    ]


def test_a_step_that_ends_between_two_beats_is_estimated_and_the_next_one_makes_it_good() -> None:
    """Four fifths busy at the last beat, so four fifths again; the beat says less: the second step gets the rest."""
    watched = Watched()
    watched.see(0.0, rollout(IN_HAND))
    watched.see(2.0, rollout(IN_HAND, beat=(3.0, 1.6)))
    first = watched.take(3.0)
    assert first["pipeline/busy_seconds/rollout"] == pytest.approx(1.6 + 0.8)
    watched.see(4.0, rollout(IN_HAND, beat=(5.0, 2.6)))
    second = watched.take(4.0)
    assert second["pipeline/busy_seconds/rollout"] == pytest.approx(2.6 - 2.4)
    assert sum(first.values()) + sum(second.values()) == pytest.approx(4.0)


def test_a_step_is_never_given_less_than_nothing() -> None:
    """Where an estimate was above what the beat tells of the whole time, the debt is kept for the steps after it."""
    watched = Watched()
    watched.see(0.0, rollout(IN_HAND))
    assert watched.take(2.0)["pipeline/busy_seconds/rollout"] == 2.0  # nothing is known yet: work in hand is work
    watched.see(2.0, rollout(IN_HAND, beat=(2.0, 0.5)))
    assert watched.take(2.0)["pipeline/busy_seconds/rollout"] == 0.0
    watched.see(5.0, rollout(IN_HAND, beat=(5.0, 3.5)))
    assert watched.take(5.0)["pipeline/busy_seconds/rollout"] == pytest.approx(3.5 - 2.0)


def test_a_role_has_the_mean_of_its_replicas_and_a_replaced_one_counts_once() -> None:
    """Replica 0 dies after 1 s and its successor serves from 3 s on; replica 1 works all the time."""
    watched = Watched()
    activity, clock = watched.activity, watched.clock
    one = rollout(IN_HAND, number=1)
    activity.note({"first": rollout(IN_HAND), "other": one})
    clock.now += 1.0
    activity.note({"other": one})
    clock.now += 2.0
    activity.note({"second": rollout(IN_HAND), "other": one})
    clock.now += 1.0
    assert activity.take() == {
        "pipeline/busy_seconds/rollout": ((1.0 + 1.0) + 4.0) / 2,
        "pipeline/waiting_input_seconds/rollout": 0.0,
        "pipeline/waiting_weights_seconds/rollout": 0.0,
    }
    clock.now += 1.0
    activity.note({"second": rollout(IN_HAND)})
    clock.now += 1.0
    activity.take()
    clock.now += 1.0
    assert activity.take()["pipeline/busy_seconds/rollout"] == 1.0  # replica 1 left before this step


def test_busy_time_that_does_not_fit_between_two_beats_is_not_lost() -> None:
    """Beats travel: the first was late by half a second, and tells of more than the time since the one before it."""
    watched = Watched()
    watched.see(0.0, rollout(IN_HAND))
    watched.see(2.0, rollout(IN_HAND, beat=(3.0, 2.5)))
    assert watched.take(2.0)["pipeline/busy_seconds/rollout"] == 2.0
    watched.see(4.0, rollout(IN_HAND, beat=(5.0, 3.5)))
    assert watched.take(4.0)["pipeline/busy_seconds/rollout"] == 1.5


def test_what_an_engine_did_before_it_was_seen_is_not_counted() -> None:
    """It probed for 50 s while it loaded; its first beat only tells where its count stands."""
    watched = Watched()
    teacher = Observation("teacher", 0, AWAITS_INPUT, busy_seconds=0.0, beat_at=0.0)
    watched.see(0.0, teacher)
    watched.see(1.0, replace(teacher, busy_seconds=50.0, beat_at=1.0))
    watched.see(3.0, replace(teacher, busy_seconds=50.0, beat_at=3.0))
    assert watched.take(3.0) == {"pipeline/busy_seconds/teacher": 0.0, "pipeline/waiting_input_seconds/teacher": 3.0}


def test_over_any_schedule_the_kinds_add_up_and_busy_is_the_engines_own_count() -> None:
    """Random postures, beats and step ends: all time is there once, slices neither overlap nor leave a gap."""
    random_ = random.Random(0)
    for _ in range(50):
        watched = Watched()
        now = count = beaten_at = 0.0
        totals: defaultdict[str, float] = defaultdict(float)
        watched.see(0.0, rollout(IN_HAND, beat=(50.0, 0.0)))
        seen = rollout(IN_HAND, beat=(50.0, 0.0))
        for _ in range(40):
            now += random_.uniform(0.01, 1.0)
            seen = replace(seen, posture=random_.choice(list(Posture)))
            if random_.random() < 0.4:
                count += random_.random() * (now - beaten_at)
                beaten_at = now
                seen = replace(seen, busy_seconds=count, beat_at=50.0 + now)
            watched.see(now, seen)
            if random_.random() < 0.2:
                for name, seconds in watched.take(now).items():
                    totals[name] += seconds
        watched.see(now + 1.0, replace(seen, busy_seconds=count, beat_at=50.0 + now + 1.0))
        slices = watched.slices
        assert slices[0].begin == 100.0
        assert slices[-1].end == pytest.approx(100.0 + now + 1.0)
        for one, following in pairwise(slices):
            assert following.begin == one.end > one.begin
        assert sum(one.end - one.begin for one in slices if one.kind == "busy") == pytest.approx(count)
        for name, seconds in watched.take(now + 1.0).items():
            totals[name] += seconds
        assert all(name in METRICS for name in totals)
        assert totals["pipeline/busy_seconds/rollout"] >= count - 1e-6
