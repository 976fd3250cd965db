"""A run's context without a run: real writers into a folder, and whatever of inputs a test gives."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minillm_ray.config.checkpoint import CheckpointSection
from minillm_ray.config.run import RunConfig
from minillm_ray.telemetry.console import RunConsole
from minillm_ray.telemetry.events import EventsWriter
from minillm_ray.telemetry.metrics import MetricsWriter


def scripted_context(folder: Path, config: RunConfig | None = None, **inputs: Any) -> Any:
    """What it writes lies in `folder`, messages in folder/console. config: None for one of run_dir, seed and
    a checkpoint every other step."""
    (folder / "console").touch()
    return SimpleNamespace(
        config=config or SimpleNamespace(run_dir=folder, seed=0, checkpoint=CheckpointSection(every_steps=2)),
        cluster=None,
        inputs=SimpleNamespace(**inputs),
        console=RunConsole(stream=(folder / "console").open("w", buffering=1)),
        metrics=MetricsWriter(folder / "metrics.jsonl"),
        events=EventsWriter(folder / "events.jsonl"),
        status=SimpleNamespace(step=lambda step: None, begin=lambda name, total_steps, done_steps: None),
    )
