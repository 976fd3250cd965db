"""An event stands at the step during which it happened."""

import pytest

from minillm_ray.report.marks import describe, family_of, marks_by_phase
from minillm_ray.telemetry.events import Event

PHASES = {
    "1-sft-student": [{"step": step, "time": 10.0 * step} for step in (1, 2, 3)],
    "2-minillm": [{"step": step, "time": 100.0 + 10 * step} for step in (1, 2, 3)],
}


def places(*events: Event) -> dict[str, list[tuple[float, str]]]:
    marks = marks_by_phase(PHASES, events, began=0.0)
    return {phase: [(mark.step, mark.family) for mark in marks[phase]] for phase in marks}


def test_a_death_stands_between_the_steps_on_either_side() -> None:
    """At 125 s: after step 2 of the second phase, before step 3. The order of the file does not matter."""
    assert places(Event(125.0, "rollout_lost", {}), Event(15.0, "teacher_lost", {})) == {
        "1-sft-student": [(1.5, "death")],
        "2-minillm": [(2.5, "death")],
    }


def test_an_event_that_names_its_phase_and_step_stands_there() -> None:
    """Whenever it was written."""
    event = Event(9999.0, "step_skipped", {"phase": "1-sft-student", "step": 2})
    assert places(event)["1-sft-student"] == [(2.0, "skipped step")]


def test_what_happens_between_two_phases_stands_at_the_start_of_the_second() -> None:
    assert places(Event(60.0, "learner_lost", {}))["2-minillm"] == [(1.0, "death")]


def test_what_happens_after_the_last_step_stands_at_the_end() -> None:
    assert places(Event(500.0, "scale_changed", {}))["2-minillm"] == [(3.0, "scale change")]


def test_a_replica_that_is_ready_for_the_first_time_is_not_marked() -> None:
    """Only one that is ready again, or joins, while the phase goes on."""
    assert places(Event(101.0, "rollout_ready", {}), Event(115.0, "rollout_ready", {}))["2-minillm"] == [
        (1.5, "restart")
    ]


@pytest.mark.parametrize("kind", ["phase_began", "phase_ended", "objective", "held_out_scores", "run_ended"])
def test_what_every_run_has_is_not_marked(kind: str) -> None:
    assert family_of(kind) is None


def test_an_event_in_words_has_every_field() -> None:
    event = Event(0.0, "rollout_lost", {"number": 2, "why": {"signal": "KILL"}})
    assert describe(event) == "rollout lost: number 2, why.signal KILL"
