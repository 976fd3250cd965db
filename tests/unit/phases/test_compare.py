"""A comparison's bookkeeping, with a runner that makes runs up: what is run, in which order, and what is tabulated."""

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.cli import main
from minillm_ray.config.compare import Comparison, load_comparison
from minillm_ray.config.errors import InputError, RunError
from minillm_ray.config.load import dump_config, load_config
from minillm_ray.config.phases import phase_name
from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases.closing import ClosingScores
from minillm_ray.phases.compare import collect_results, compare
from minillm_ray.phases.run_context import Models
from minillm_ray.phases.run_folder import FinishedPhase, record_finished
from minillm_ray.telemetry.metrics import MetricsWriter

WriteRun = Callable[..., Path]
TEACHER = HeldOutScores(0.0, 60.0, 10.0, 0.0)
KL = {"sft": 0.9, "mini": 0.2}


class ScriptedRunner:
    """Leaves what a run leaves. fails: the run folder of the one that ends with `status`."""

    def __init__(self, *, fails: str | None = None, status: int = 1) -> None:
        self.fails, self.status = fails, status
        self.ran: list[str] = []

    def __call__(self, path: Path) -> int:
        config = load_config(path)
        run_dir = config.run_dir
        name = f"{run_dir.parent.name}/{run_dir.name}"
        self.ran.append(name)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump_config(config))
        if self.fails == name:
            return self.status
        phase = phase_name(len(config.phases), config.phases[-1])
        metrics = MetricsWriter(run_dir / "metrics.jsonl")
        for step in (1, 2, 3):
            metrics.write(step=step, phase=phase, metrics={})
        kl = KL.get(run_dir.parent.name, 1.0) + config.seed / 100
        after = HeldOutScores(kl, None if run_dir.parent.name == "sft" else 40.0 + config.seed, 12.0, 0.25)
        teacher = TEACHER if config.evaluation.teacher_row else None
        models = Models(str(run_dir / "student"), config.teacher.model)
        record_finished(run_dir, phase, FinishedPhase(models, asdict(ClosingScores(teacher, None, after))))
        (run_dir / "student").mkdir()
        return 0


@pytest.fixture
def load(write_run: WriteRun, run_tree: dict[str, Any]) -> Callable[..., Comparison]:
    """A comparison of two methods; keywords change its section `compare`."""
    del run_tree["phases"]
    student = {"kind": "sft", "model": "student"}
    section: dict[str, Any] = {
        "seeds": [1, 3],
        "prepare": [{"kind": "sft", "model": "teacher"}, student],
        "methods": [
            {"name": "sft", "phases": [student]},
            {"name": "mini", "phases": [{"kind": "minillm", "steps": 3}], "seeds": [1]},
        ],
    }
    return lambda **changes: load_comparison(write_run(compare=section | changes))


def test_what_is_shared_is_made_first_and_then_every_run_once(
    load: Callable[..., Comparison], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its number among all."""
    runner = ScriptedRunner()
    compare(load(), train=runner)
    assert runner.ran == ["run/prepared", "sft/seed-1", "mini/seed-1", "sft/seed-3"]
    assert "[3/4] mini, seed 1" in capsys.readouterr().out


def test_finished_runs_are_not_made_again(load: Callable[..., Comparison]) -> None:
    """Neither those of a comparison that failed halfway, nor those of one that is done; a new seed is."""
    runner = ScriptedRunner(fails="mini/seed-1")
    with pytest.raises(RunError, match="mini, seed 1 ended with status 1"):
        compare(load(), train=runner)
    runner.fails = None
    compare(load(), train=runner)
    assert runner.ran[3:] == ["mini/seed-1", "sft/seed-3"]
    compare(load(seeds=[1, 3, 5]), train=runner)
    assert runner.ran[5:] == ["sft/seed-5"]


def test_a_run_without_its_student_is_not_finished(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """It ended between its last phase and its end."""
    runner = ScriptedRunner()
    compare(load(), train=runner)
    (tmp_path / "run" / "mini" / "seed-1" / "student").rmdir()
    compare(load(), train=runner)
    assert runner.ran[4:] == ["mini/seed-1"]


def test_the_table_has_mean_and_spread_over_seeds(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """Of each method; what was measured once has no spread, what nobody measured no number."""
    compare(load(), train=ScriptedRunner())
    tree = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert tree["teacher"] == asdict(TEACHER)
    assert tree["student"]["reverse_kl"] == pytest.approx(1.1)  # the preparation has the file's own seed, 10
    sft, mini = tree["methods"]
    values = [0.91, 0.93]
    assert [run["scores"]["reverse_kl"] for run in sft["runs"]] == pytest.approx(values)
    assert sft["scores"]["reverse_kl"]["mean"] == pytest.approx(statistics.fmean(values))
    assert sft["scores"]["reverse_kl"]["std"] == pytest.approx(statistics.stdev(values))
    assert sft["scores"]["rouge_l"] == {"mean": None, "std": None}
    assert mini["scores"]["reverse_kl"] == {"mean": pytest.approx(0.21), "std": None}
    assert [run["folder"] for run in sft["runs"]] == ["sft/seed-1", "sft/seed-3"]
    assert {run["steps"] for method in tree["methods"] for run in method["runs"]} == {3}
    rows = [line for line in (tmp_path / "run" / "compare.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| teacher", "| student before", "| sft", "| mini"]
    assert "| sft | 2 | 3 | 0.9200 | 0.01414 | - | - | 12.00 | 0.000 | 0.2500 | 0.000 |" in rows


def test_a_comparison_that_goes_on_can_be_read(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """Table and page are there after every run, and say what is missing."""
    with pytest.raises(RunError):
        compare(load(), train=ScriptedRunner(fails="sft/seed-3"))
    assert "| sft | 1 of 2 |" in (tmp_path / "run" / "compare.md").read_text()
    assert "2 of 3 runs" in (tmp_path / "run" / "report.html").read_text()


def test_the_report_can_be_written_again_from_the_results_alone(
    load: Callable[..., Comparison], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`minillm-ray report` takes a comparison's folder too, and what is no result of one is bad input."""
    compare(load(), train=ScriptedRunner())
    folder = tmp_path / "run"
    page = folder / "report.html"
    first = page.read_text()
    page.unlink()
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert _but_for_the_clock(page.read_text()) == _but_for_the_clock(first)
    for broken in ("{", "{}", '{"teacher": 3}'):
        (folder / "compare.json").write_text(broken)
        assert main(["report", str(folder)]) == 2
        assert "expected what `minillm-ray compare` writes" in capsys.readouterr().err


def _but_for_the_clock(page: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d.\d\d:\d\d[:0-9]*", "", page)


def test_without_a_preparation_every_run_tells_the_teachers_row(load: Callable[..., Comparison]) -> None:
    """And there is no student that was measured before."""
    comparison = load(prepare=[])
    compare(comparison, train=ScriptedRunner())
    result = collect_results(comparison)
    assert (result.teacher, result.student) == (TEACHER, None)


def test_bad_input_of_a_run_is_bad_input_of_the_comparison(load: Callable[..., Comparison]) -> None:
    """The exit status says so."""
    with pytest.raises(InputError, match="sft, seed 1 ended with status 2"):
        compare(load(), train=ScriptedRunner(fails="sft/seed-1", status=2))


def test_settings_that_are_not_those_of_the_runs_before_are_refused(load: Callable[..., Comparison]) -> None:
    """Before anything is run: half a table of one setting and half of another would be no comparison."""
    runner = ScriptedRunner()
    compare(load(), train=runner)
    longer = {"name": "mini", "phases": [{"kind": "minillm", "steps": 4}], "seeds": [1]}
    with pytest.raises(InputError, match="other settings"):
        compare(load(methods=[longer]), train=runner)
    assert len(runner.ran) == 4
