"""One phase after the other: each begins where the one before ended, a finished one is not run again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted.run_context import scripted_context

from minillm_ray.config.load import load_config
from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases import run as module
from minillm_ray.phases.closing import ClosingScores
from minillm_ray.phases.run_context import Models

WriteRun = Callable[..., Path]
SCORES = ClosingScores(None, None, HeldOutScores(0.5, None, 3.0, 0.0))
SFT_TEACHER = {"kind": "sft", "model": "teacher"}
SFT_STUDENT = {"kind": "sft", "model": "student"}
MINILLM = {"kind": "minillm", "steps": 64}


class ScriptedPhases:
    """Writes down each phase with the models that it began with. fails: the name of the phase that raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[tuple[str, Models]] = []
        self.measured: list[str] = []
        self.fails: str | None = None

    def phase(self, context: Any, phase: Any, models: Models, *, name: str) -> Models:
        self.ran.append((name, models))
        if name == self.fails:
            raise OSError("no space left on device")
        (self.folder / name).mkdir(exist_ok=True)
        role = getattr(phase, "model", "student")
        return Models(**(vars(models) | {role: str(self.folder / name)}))

    def minillm(self, context: Any, phase: Any, models: Models, *, name: str) -> tuple[Models, ClosingScores]:
        return self.phase(context, phase, models, name=name), SCORES

    def measure(self, context: Any, models: Models, *, name: str) -> ClosingScores:
        self.measured.append(name)
        return SCORES


@pytest.fixture
def phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedPhases:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    phases = ScriptedPhases(tmp_path)
    for name in ("run_sft", "run_kd", "run_seqkd"):
        monkeypatch.setattr(module, name, phases.phase)
    monkeypatch.setattr(module, "run_minillm", phases.minillm)
    monkeypatch.setattr(module, "measure_result", phases.measure)
    return phases


@pytest.fixture
def run(phases: ScriptedPhases, write_run: WriteRun, tmp_path: Path) -> Callable[..., ClosingScores | None]:
    """Runs these phases in tmp_path/run."""

    def run(*trees: dict[str, Any]) -> ClosingScores | None:
        config = load_config(write_run(phases=list(trees)))
        config.run_dir.mkdir(exist_ok=True)
        return module._run_phases(scripted_context(config.run_dir, config), Models("student", "teacher"))

    return run


def test_a_phase_begins_with_the_models_that_the_ones_before_left(
    run: Callable[..., Any], phases: ScriptedPhases, tmp_path: Path
) -> None:
    """Teacher and student each by themselves."""
    run(SFT_TEACHER, {"kind": "kd"}, {"kind": "seqkd"})
    teacher, student = str(tmp_path / "1-sft-teacher"), str(tmp_path / "2-kd")
    assert phases.ran == [
        ("1-sft-teacher", Models("student", "teacher")),
        ("2-kd", Models("student", teacher)),
        ("3-seqkd", Models(student, teacher)),
    ]
    assert (tmp_path / "run" / "student").is_dir()


def test_a_finished_phase_is_not_run_again(run: Callable[..., Any], phases: ScriptedPhases, tmp_path: Path) -> None:
    """The one that failed is, with the models that the finished ones left."""
    phases.fails = "2-kd"
    with pytest.raises(OSError, match="no space"):
        run(SFT_STUDENT, {"kind": "kd"})
    phases.fails = None
    assert run(SFT_STUDENT, {"kind": "kd"}) == SCORES
    student = Models(str(tmp_path / "1-sft-student"), "teacher")
    assert phases.ran[1:] == [("2-kd", student), ("2-kd", student)]
    assert run(SFT_STUDENT, {"kind": "kd"}) == SCORES
    assert len(phases.ran) == 3
    assert phases.measured == ["2-kd"]


@pytest.mark.parametrize(
    ("trees", "measured", "scores"),
    [
        ([SFT_STUDENT], ["1-sft-student"], SCORES),
        ([{"kind": "seqkd"}], ["1-seqkd"], SCORES),
        ([MINILLM], [], SCORES),
        ([MINILLM, {"kind": "kd"}], ["2-kd"], SCORES),
        ([SFT_TEACHER], [], None),
    ],
)
def test_a_run_ends_with_the_table_of_its_last_student(
    trees: list[dict[str, Any]],
    measured: list[str],
    scores: ClosingScores | None,
    run: Callable[..., Any],
    phases: ScriptedPhases,
) -> None:
    """MiniLLM measures its own; after the teacher's fine-tuning there is nothing to measure."""
    assert run(*trees) == scores
    assert phases.measured == measured
