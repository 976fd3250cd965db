"""`minillm-ray compare`: every method once a seed, from one teacher, one student and the same data; then one table.

    OUT/prepared/  OUT/METHOD/seed-N/  (a run each, one after the other, in a process of its own)
        -> OUT/compare.json, compare.md, report.html, written again after each run

A run that is finished is not made again, one that was interrupted goes on, as `train` does it.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from minillm_ray.config.compare import ComparedRun, Comparison
from minillm_ray.config.errors import InputError, RunError, Terminated
from minillm_ray.config.load import dump_config
from minillm_ray.config.phases import phase_name, trains_student
from minillm_ray.config.run import RunConfig
from minillm_ray.evaluation.comparison import ComparisonResult, MethodResult, RunResult
from minillm_ray.phases.closing import ClosingScores, read_scores
from minillm_ray.phases.run_folder import FinishedPhase, finished_phase, is_continued, owned
from minillm_ray.report import write_comparison_report
from minillm_ray.telemetry.console import print_table
from minillm_ray.telemetry.files import write_atomically
from minillm_ray.telemetry.metrics import read_metrics

_RESULTS = "compare.json"
_TITLE = "Methods on held-out prompts, mean and standard deviation over seeds"


@dataclass(frozen=True)
class _Planned:
    """A run and what it is called in messages."""

    name: str
    config: RunConfig


def compare(comparison: Comparison, *, train: Callable[[Path], int] | None = None) -> None:
    """Make every run that is not finished, and print the table.

    train: runs the configuration in a file and returns its exit status; None for `minillm-ray train` in a process of
    its own. Raises InputError before anything is written where an earlier run had other settings, RunError where a run
    fails: the same command goes on with it.
    """
    planned = _planned(comparison)
    for run in planned:
        _require_same_settings(run)
    with owned(comparison.folder):
        for number, run in enumerate(planned, start=1):
            done = _is_finished(run.config)
            print(f"[{number}/{len(planned)}] {run.name}{': finished before' if done else ''}", flush=True)
            if not done:
                _make(run, train or _train_apart)
            result = collect_results(comparison)
            write_results(comparison.folder, result)
    print_table(_TITLE, result.columns(), result.rows())
    print(f"compare.json, compare.md, report.html and every run are in {comparison.folder}.")


def collect_results(comparison: Comparison) -> ComparisonResult:
    """Of the runs that are finished by now."""
    finished = [(run, scores) for run in comparison.runs if (scores := _closing_scores(run.config)) is not None]
    methods = []
    for name in comparison.methods:
        results = [_result(comparison.folder, run, scores) for run, scores in finished if run.method == name]
        wanted = sum(run.method == name for run in comparison.runs)
        methods.append(MethodResult(name, wanted, tuple(results)))
    shared = None if comparison.prepare is None else _closing_scores(comparison.prepare)
    measured = [shared] if shared is not None else [scores for _, scores in finished]
    teacher = next((scores.teacher for scores in measured if scores.teacher is not None), None)
    return ComparisonResult(teacher, None if shared is None else shared.after, tuple(methods))


def write_results(folder: Path, result: ComparisonResult) -> None:
    """compare.json, compare.md and report.html, also of a comparison that goes on."""
    write_atomically(folder / _RESULTS, json.dumps(result.tree(), indent=1) + "\n")
    write_atomically(folder / "compare.md", result.markdown(f"{folder.name}: methods compared"))
    write_comparison_report(folder, result.columns(), result.rows())


def is_comparison(folder: Path) -> bool:
    """Whether a comparison has begun in the folder."""
    return (folder / _RESULTS).is_file()


def write_report_again(folder: Path) -> Path:
    """report.html of the runs that compare.json names; its path. Raises InputError where that cannot be read."""
    file = folder / _RESULTS
    try:
        result = ComparisonResult.of_tree(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: {error!r}; expected what `minillm-ray compare` writes; run it again") from None
    return write_comparison_report(folder, result.columns(), result.rows())


def _planned(comparison: Comparison) -> list[_Planned]:
    prepare = [] if comparison.prepare is None else [_Planned("what all runs share", comparison.prepare)]
    return [*prepare, *(_Planned(f"{run.method}, seed {run.seed}", run.config) for run in comparison.runs)]


def _require_same_settings(run: _Planned) -> None:
    try:
        is_continued(run.config)
    except InputError as error:
        raise InputError(f"{run.name}: {error}\n(compare has no --fresh: move the folder aside by hand)") from None


def _make(run: _Planned, train: Callable[[Path], int]) -> None:
    run_dir = run.config.run_dir
    path = run_dir.with_name(f"{run_dir.name}.yaml")
    write_atomically(path, dump_config(run.config))
    status = train(path)
    if status == 0:
        return
    message = f"{run.name} ended with status {status}, its message is above; the same command goes on with it: {path}"
    raise InputError(message) if status == 2 else RunError(message)


def _train_apart(path: Path) -> int:
    """`minillm-ray train` in a process of its own, so that nothing is left of one run when the next begins."""

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, on_sigterm)
    process = subprocess.Popen([sys.executable, "-m", "minillm_ray", "train", str(path)])
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to both
        process.wait()
        raise
    except Terminated:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
        signal.signal(signal.SIGTERM, before)


def _is_finished(config: RunConfig) -> bool:
    record = _record(config)
    if record is None or not (config.run_dir / "student").is_dir():
        return False
    return record.scores is not None or not trains_student(config.phases[-1])


def _closing_scores(config: RunConfig) -> ClosingScores | None:
    """Of a finished run that has a table."""
    record = _record(config) if _is_finished(config) else None
    return None if record is None or record.scores is None else read_scores(record.scores)


def _record(config: RunConfig) -> FinishedPhase | None:
    return finished_phase(config.run_dir, phase_name(len(config.phases), config.phases[-1]))


def _result(folder: Path, run: ComparedRun, scores: ClosingScores) -> RunResult:
    run_dir = run.config.run_dir
    return RunResult(run.seed, str(run_dir.relative_to(folder)), _optimizer_steps(run_dir), scores.after)


def _optimizer_steps(run_dir: Path) -> int:
    """Of all phases together."""
    last: dict[str, int] = {}
    for row in read_metrics(run_dir / "metrics.jsonl"):
        last[row["phase"]] = max(last.get(row["phase"], 0), row["step"])
    return sum(last.values())
