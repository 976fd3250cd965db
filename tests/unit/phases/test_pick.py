"""Which student is the result of a MiniLLM phase, and which ones are measured for that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted.run_context import scripted_context

from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases import pick
from minillm_ray.phases.closing import KnownScores
from minillm_ray.phases.pick import Picker, stops
from minillm_ray.telemetry.metrics import read_metrics

ROUGE_L = {10: 30.0, 20: 41.0, 30: 35.0}
NAME = "1-minillm"


def phase(**settings: Any) -> MiniLLMPhase:
    sizes = {"steps": 30, "rollouts": 4, "minibatch": 4, "evaluate_every": 10}
    return MiniLLMPhase(kind="minillm", **(sizes | settings))


class ScriptedCrew:
    """Its student is that of `step`; saved: the step of what lies in each folder."""

    def __init__(self) -> None:
        self.step = 0
        self.saved: dict[Path, int] = {}
        self.measured: list[int] = []

    def ask_learner(self, call: Any, work: str) -> None:
        call(SimpleNamespace(save=lambda folder: self.saved.update({folder: self.step})))


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> ScriptedCrew:
    crew = ScriptedCrew()

    def measure(crew: ScriptedCrew, measured: None) -> HeldOutScores:
        crew.measured.append(crew.step)
        return HeldOutScores(1.0 / (crew.step + 1), ROUGE_L.get(crew.step, 20.0), 10.0, 0.0)

    monkeypatch.setattr(pick, "measure_student", measure)
    return crew


def picker(folder: Path, chosen: MiniLLMPhase) -> Picker:
    known = KnownScores(folder / "phases" / NAME / "scores.json")
    measured: Any = None
    return Picker(scripted_context(folder), chosen, known, measured, name=NAME)


def train(crew: ScriptedCrew, picker: Picker, steps: list[int]) -> None:
    for crew.step in steps:
        picker.consider(crew.step, crew)  # type: ignore[arg-type]


def test_measured_are_every_so_many_steps_and_the_last() -> None:
    """Where the phase stands, and what is to come; without evaluate_every the last step alone."""
    assert stops(phase(), done_steps=0) == [10, 20, 30]
    assert stops(phase(steps=34), done_steps=0) == [10, 20, 30, 34]
    assert stops(phase(), done_steps=20) == [20, 30]
    assert stops(phase(), done_steps=21) == [30]
    assert stops(phase(evaluate_every=None), done_steps=0) == [30]
    assert stops(phase(evaluate_every=40), done_steps=0) == [30]


def test_the_last_student_is_the_result_unless_told_otherwise(crew: ScriptedCrew, tmp_path: Path) -> None:
    """With its own row, although another had a higher Rouge-L."""
    chosen = picker(tmp_path, phase())
    train(crew, chosen, [10, 20, 30])
    student, scores = chosen.result(crew)  # type: ignore[arg-type]
    assert crew.saved == {tmp_path / "student": 30}
    assert (student, scores.rouge_l) == (tmp_path / "student", 35.0)


def test_the_student_with_the_highest_rouge_l_may_be(crew: ScriptedCrew, tmp_path: Path) -> None:
    """Its weights are kept while training goes on, and its row is the one in the table."""
    chosen = picker(tmp_path, phase(select="rouge_l"))
    train(crew, chosen, [10, 20, 30])
    student, scores = chosen.result(crew)  # type: ignore[arg-type]
    assert student == tmp_path / "phases" / NAME / "best"
    assert crew.saved == {student: 20}
    assert scores.rouge_l == 41.0


def test_each_measurement_is_a_point_of_the_curves(crew: ScriptedCrew, tmp_path: Path) -> None:
    """At the step of the student that was measured, beside the numbers of that step's training."""
    chosen = picker(tmp_path, phase())
    chosen._context.metrics.write(step=10, phase=NAME, metrics={"objective/loss/total": 0.5})
    train(crew, chosen, [10, 20])
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    assert {step: row["evaluation/rouge_l/mean"] for step, row in rows.items()} == {10: 30.0, 20: 41.0}
    assert rows[10]["evaluation/reverse_kl_nats_per_token/mean"] == pytest.approx(1 / 11)
    assert rows[10]["objective/loss/total"] == 0.5


def test_a_resumed_phase_measures_no_student_twice_and_still_knows_the_best(crew: ScriptedCrew, tmp_path: Path) -> None:
    """What was kept before counts against what comes after."""
    chosen = phase(select="rouge_l")
    train(crew, picker(tmp_path, chosen), [10, 20])
    resumed = picker(tmp_path, chosen)
    train(crew, resumed, [20, 30])
    assert crew.measured == [10, 20, 30]
    assert resumed.result(crew)[1].rouge_l == 41.0  # type: ignore[arg-type]
    assert crew.saved == {tmp_path / "phases" / NAME / "best": 20}


def test_the_student_before_is_measured_once(crew: ScriptedCrew, tmp_path: Path) -> None:
    """It is a row of the table, and none of those that are picked among."""
    for _ in range(2):
        chosen = picker(tmp_path, phase(select="rouge_l", steps=10))
        chosen.measure_before(crew)  # type: ignore[arg-type]
    assert crew.measured == [0]
    assert chosen.before.rouge_l == 20.0
    train(crew, chosen, [10])
    assert chosen.result(crew)[1].rouge_l == 30.0  # type: ignore[arg-type]
