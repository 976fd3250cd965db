"""A whole run: checks, a folder, a cluster, one phase after the other, a table, a student."""

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from minillm_ray.config.load import dump_config
from minillm_ray.config.phases import KdPhase, MiniLLMPhase, Phase, SeqKdPhase, SftPhase, phase_name, trains_student
from minillm_ray.config.run import RunConfig
from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases.closing import ClosingScores, measure_result, read_scores
from minillm_ray.phases.cluster import ClusterFacts, cluster
from minillm_ray.phases.control import ScaleRequests
from minillm_ray.phases.inputs import Inputs, prepare_inputs
from minillm_ray.phases.kd import run_kd
from minillm_ray.phases.minillm import run_minillm
from minillm_ray.phases.objective import objective_settings
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.run_folder import (
    FinishedPhase,
    finished_phase,
    is_continued,
    owned,
    record_finished,
    require_folder,
)
from minillm_ray.phases.seqkd import run_seqkd
from minillm_ray.phases.sft import run_sft
from minillm_ray.phases.status import StatusFile
from minillm_ray.report import write_report
from minillm_ray.telemetry.console import RunConsole, format_duration, print_table
from minillm_ray.telemetry.events import EventsWriter
from minillm_ray.telemetry.files import folder_beside, replace_folder, write_atomically
from minillm_ray.telemetry.metrics import MetricsWriter
from minillm_ray.telemetry.samples import SamplesWriter

_COLUMNS = ("model", "reverse KL (nats/token)", "Rouge-L", "mean length", "truncated")


def run(config: RunConfig, *, fresh: bool) -> None:
    """Run every phase of `config`, or go on where an earlier run in run_dir stopped.

    fresh: an earlier run is moved aside, to run_dir.1 and so on, and everything starts over.
    Raises InputError before anything is written, RunError if the run could not finish.
    """
    began = time.monotonic()
    if any(isinstance(phase, MiniLLMPhase) for phase in config.phases):
        objective_settings(config)
    run_dir = config.run_dir
    require_folder(run_dir)
    scores = _continue(config) if not fresh and is_continued(config) else _begin(config)
    if scores is not None:
        _print_scores(scores)
    print(f"The student is in {run_dir / 'student'}; everything else of the run in {run_dir}.")
    print(f"The run took {format_duration(time.monotonic() - began)}.")


def _begin(config: RunConfig) -> ClosingScores | None:
    # Whatever is made before everything is known to be in order is made beside the run's folder.
    run_dir = config.run_dir
    staging = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.new")
    try:
        inputs = prepare_inputs(config, embedded=staging / "embedded")
        with cluster(config) as facts:
            _settle(staging, run_dir)
            with owned(run_dir):
                write_atomically(run_dir / "config.yaml", dump_config(config))
                return _run_in(run_dir, config, facts, inputs.moved(staging, run_dir))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _continue(config: RunConfig) -> ClosingScores | None:
    with owned(config.run_dir):
        inputs = prepare_inputs(config, embedded=config.run_dir / "embedded")
        with cluster(config) as facts:
            return _run_in(config.run_dir, config, facts, inputs)


def _run_in(run_dir: Path, config: RunConfig, facts: ClusterFacts, inputs: Inputs) -> ClosingScores | None:
    tensorboard = run_dir / "tensorboard" if config.telemetry.tensorboard else None
    events = EventsWriter(run_dir / "events.jsonl")
    context = RunContext(
        config=config,
        cluster=facts,
        inputs=inputs,
        console=RunConsole(),
        metrics=MetricsWriter(run_dir / "metrics.jsonl", tensorboard),
        events=events,
        samples=SamplesWriter(run_dir / "samples.parquet"),
        status=StatusFile(run_dir),
        scale_requests=ScaleRequests(run_dir, write_event=events.write),
    )
    try:
        scores = _run_phases(context, Models(inputs.student, inputs.teacher))
        context.events.write("run_ended", {"status": "done"})
        return scores
    except Exception as error:
        context.events.write("run_ended", {"status": "failed", "reason": str(error)})
        raise
    except BaseException:
        context.events.write("run_ended", {"status": "stopped"})
        raise
    finally:
        context.console.end()
        context.status.close()
        context.samples.close()
        context.metrics.close()
        context.events.close()
        _report(context)


def _report(context: RunContext) -> None:
    """Write the report of a run that made a step, however it ended; without a report the run is what it is."""
    run_dir = context.config.run_dir
    if not (run_dir / "metrics.jsonl").stat().st_size:
        return
    try:
        write_report(run_dir)
    except Exception as error:
        context.console.message(f"report.html was not written: {error}")


def _run_phases(context: RunContext, models: Models) -> ClosingScores | None:
    """Those that are not finished yet, and the closing table of the last one that has one."""
    scores, name, run_dir = None, "", context.config.run_dir
    for number, phase in enumerate(context.config.phases, start=1):
        name = phase_name(number, phase)
        if finished := finished_phase(run_dir, name):
            context.console.message(f"{name}: finished before")
            models, scores = finished.models, None if finished.scores is None else read_scores(finished.scores)
            continue
        context.events.write("phase_began", {"phase": phase.kind, "number": number})
        models, scores = _run_phase(context, phase, models, name=name)
        _record(run_dir, name, models, scores)
        context.events.write("phase_ended", {"phase": phase.kind, "number": number})
    if scores is None and trains_student(phase):
        scores = measure_result(context, models, name=name)
        _record(run_dir, name, models, scores)
    student = run_dir / "student"
    if Path(models.student) != student:
        copy = folder_beside(student)
        shutil.copytree(models.student, copy, dirs_exist_ok=True)
        replace_folder(copy, student)
    return scores


def _run_phase(context: RunContext, phase: Phase, models: Models, *, name: str) -> tuple[Models, ClosingScores | None]:
    """The models after it; the rows of a table where the phase measured them."""
    match phase:
        case SftPhase():
            return run_sft(context, phase, models, name=name), None
        case KdPhase():
            return run_kd(context, phase, models, name=name), None
        case SeqKdPhase():
            return run_seqkd(context, phase, models, name=name), None
        case MiniLLMPhase():
            return run_minillm(context, phase, models, name=name)


def _record(run_dir: Path, name: str, models: Models, scores: ClosingScores | None) -> None:
    record_finished(run_dir, name, FinishedPhase(models, None if scores is None else asdict(scores)))


def _print_scores(scores: ClosingScores) -> None:
    named = {"teacher": scores.teacher, "student before": scores.before, "student after": scores.after}
    rows = [_row(name, row) for name, row in named.items() if row is not None]
    print_table("Held-out prompts, one sampled response each", _COLUMNS, rows)
    if scores.before is not None:
        ratio = scores.after.reverse_kl / scores.before.reverse_kl
        print(f"Reverse KL to the teacher is {ratio:.3f} of what it was before MiniLLM.")


def _row(name: str, scores: HeldOutScores) -> tuple[str | float | None, ...]:
    share = f"{100 * scores.truncated_fraction:.1f} %"
    return name, scores.reverse_kl, scores.rouge_l, scores.response_tokens, share


def _settle(staging: Path, run_dir: Path) -> None:
    """Move an earlier run aside and give what was prepared its place in the new one."""
    if run_dir.exists() and any(run_dir.iterdir()):
        number = 1
        while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
            number += 1
        with owned(run_dir):  # never from under a driver that works in it
            run_dir.rename(target)
    run_dir.mkdir(parents=True, exist_ok=True)
    if staging.exists():
        for item in staging.iterdir():
            item.rename(run_dir / item.name)
