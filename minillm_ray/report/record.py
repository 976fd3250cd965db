"""What a run left in its folder so far. A run that still goes on, or was killed, is read like one that is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.events import Event, read_events
from minillm_ray.telemetry.metrics import read_metrics
from minillm_ray.telemetry.samples import Sample, read_samples

MAX_SAMPLES = 24


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's folder.

    config   The tree of config.yaml as it was written, so that runs of other versions can be read; {} without one.
    metrics  The lines of metrics.jsonl in order, at least one.
    events   In order; none if there is no file.
    samples  At most MAX_SAMPLES, half of them the first and half the last.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    events: Sequence[Event]
    samples: Sequence[Sample]

    def phase_rows(self) -> dict[str, list[Mapping[str, Any]]]:
        """The lines of each phase, ascending by step; phases in the order in which they began."""
        phases: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.metrics:
            phases.setdefault(row["phase"], []).append(row)
        return {phase: sorted(rows, key=lambda row: row["step"]) for phase, rows in phases.items()}


def read_run(folder: Path) -> RunRecord:
    """Read what is there. Raises InputError if `folder` has no metrics or a file of it is broken before its end."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise InputError(f"{folder} has no metrics.jsonl; expected the run_dir of a run that has begun to train")
    try:
        metrics = read_metrics(file)
    except KeyError as error:
        raise InputError(f"{file}: a line without {error}; expected the metrics.jsonl of a run") from None
    if not metrics:
        raise InputError(f"{file} has no complete line yet; wait for the first optimizer step of the run")
    events, samples = folder / "events.jsonl", folder / "samples.parquet"
    return RunRecord(
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        metrics=metrics,
        events=read_events(events) if events.is_file() else [],
        samples=read_samples(samples, rows=first_and_last) if samples.is_file() else [],
    )


def first_and_last(num_rows: int) -> list[int]:
    """Which of the rows of samples.parquet are shown: all, or the first and the last MAX_SAMPLES / 2."""
    if num_rows <= MAX_SAMPLES:
        return list(range(num_rows))
    half = MAX_SAMPLES // 2
    return [*range(half), *range(num_rows - half, num_rows)]


def _read_config(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    return tree if isinstance(tree, dict) else {}
