"""A whole run: checks, a folder, a cluster, one phase after the other, a table, a student."""

import os
import shutil
import time
from pathlib import Path

from minillm_ray.config.errors import InputError
from minillm_ray.config.load import dump_config
from minillm_ray.config.phases import MiniLLMPhase, SftPhase
from minillm_ray.config.run import RunConfig
from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases.cluster import ClusterFacts, cluster
from minillm_ray.phases.inputs import Inputs, prepare_inputs
from minillm_ray.phases.minillm import MiniLLMScores, run_minillm
from minillm_ray.phases.objective import objective_settings
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.sft import run_sft
from minillm_ray.telemetry.console import RunConsole, format_duration, print_table
from minillm_ray.telemetry.events import EventsWriter
from minillm_ray.telemetry.files import write_atomically
from minillm_ray.telemetry.metrics import MetricsWriter
from minillm_ray.telemetry.samples import SamplesWriter

_COLUMNS = ("model", "reverse KL (nats/token)", "Rouge-L", "mean length", "truncated")


def run(config: RunConfig, *, fresh: bool) -> None:
    """Run every phase of `config`. fresh: an earlier run in run_dir is moved aside, to run_dir.1 and so on.

    Raises InputError before anything is written, RunError if the run could not finish.
    """
    began = time.monotonic()
    if any(isinstance(phase, MiniLLMPhase) for phase in config.phases):
        objective_settings(config)
    run_dir = config.run_dir
    if not fresh:
        _require_unused(run_dir)
    # Whatever is made before everything is known to be in order is made beside the run's folder.
    staging = run_dir.with_name(f".{run_dir.name}.{os.getpid()}.new")
    try:
        inputs = prepare_inputs(config, embedded=staging / "embedded")
        with cluster(config) as facts:
            _settle(staging, run_dir)
            scores = _run_in(run_dir, config, facts, inputs.moved(staging, run_dir))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if scores is not None:
        _print_scores(scores)
    print(f"The student is in {run_dir / 'student'}; everything else of the run in {run_dir}.")
    print(f"The run took {format_duration(time.monotonic() - began)}.")


def _run_in(run_dir: Path, config: RunConfig, facts: ClusterFacts, inputs: Inputs) -> MiniLLMScores | None:
    write_atomically(run_dir / "config.yaml", dump_config(config))
    tensorboard = run_dir / "tensorboard" if config.telemetry.tensorboard else None
    context = RunContext(
        config=config,
        cluster=facts,
        inputs=inputs,
        console=RunConsole(),
        metrics=MetricsWriter(run_dir / "metrics.jsonl", tensorboard),
        events=EventsWriter(run_dir / "events.jsonl"),
        samples=SamplesWriter(run_dir / "samples.parquet"),
    )
    try:
        return _run_phases(context, Models(inputs.student, inputs.teacher))
    finally:
        context.console.end()
        context.samples.close()
        context.metrics.close()
        context.events.close()


def _run_phases(context: RunContext, models: Models) -> MiniLLMScores | None:
    scores = None
    for number, phase in enumerate(context.config.phases, start=1):
        context.events.write("phase_began", {"phase": phase.kind, "number": number})
        if isinstance(phase, SftPhase):
            models = run_sft(context, phase, models, name=f"{number}-sft-{phase.model}")
        else:
            models, scores = run_minillm(context, phase, models, name=f"{number}-minillm")
        context.events.write("phase_ended", {"phase": phase.kind, "number": number})
    student = context.config.run_dir / "student"
    if Path(models.student) != student:
        shutil.copytree(models.student, student)
    return scores


def _print_scores(scores: MiniLLMScores) -> None:
    rows = [
        _row("teacher", scores.teacher),
        _row("student before", scores.before),
        _row("student after", scores.after),
    ]
    print_table("Held-out prompts, one sampled response each", _COLUMNS, rows)
    ratio = scores.after.reverse_kl / scores.before.reverse_kl
    print(f"Reverse KL to the teacher is {ratio:.3f} of what it was before MiniLLM.")


def _row(name: str, scores: HeldOutScores) -> tuple[str | float, ...]:
    share = f"{100 * scores.truncated_fraction:.1f} %"
    return name, scores.reverse_kl, scores.rouge_l, scores.response_tokens, share


def _require_unused(run_dir: Path) -> None:
    if run_dir.is_file() or (run_dir.is_dir() and any(run_dir.iterdir())):
        raise InputError(
            f"run_dir {run_dir} is not empty; expected a new folder. Add --fresh to move the earlier run aside, or "
            f"choose another: -s run_dir=OTHER"
        )


def _settle(staging: Path, run_dir: Path) -> None:
    """Move an earlier run aside and give what was prepared its place in the new one."""
    if run_dir.exists() and any(run_dir.iterdir()):
        number = 1
        while (target := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
            number += 1
        run_dir.rename(target)
    run_dir.mkdir(parents=True, exist_ok=True)
    if staging.exists():
        for item in staging.iterdir():
            item.rename(run_dir / item.name)
