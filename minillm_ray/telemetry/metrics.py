"""RUN/metrics.jsonl: one JSON object a step, always; TensorBoard beside it by a switch.

    {"step": 12, "phase": "minillm", "time": 1767225600.0, "objective/kl_nats_per_token/mean": 0.41, ...}

Names are declared in `declarations`. A run that resumes repeats the steps after its checkpoint: later numbers count.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.declarations import require_declared
from minillm_ray.telemetry.files import JsonlWriter, read_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsWriter:
    """Writes the numbers of a step, flushed before `write` returns, so that they outlive a crash of the run.

    path         The JSONL file; an existing one is continued.
    tensorboard  Folder of the TensorBoard log, or None for none.
    clock        Seconds since the epoch.

    nan and the infinities are no JSON numbers: they are written as null, so that every line stays readable.
    Raises InputError if `tensorboard` is set and the package is not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._board = _open_tensorboard(tensorboard) if tensorboard else None
        self._log = JsonlWriter(path)
        self._clock = clock

    def write(self, *, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        """One line for `step` of `phase`. Raises KeyError for a name that is not declared, and writes nothing then."""
        for name in metrics:
            require_declared(name)
        row: dict[str, Any] = {"step": step, "phase": phase, "time": self._clock()}
        row |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._log.append(row)
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)
            self._board.flush()

    def close(self) -> None:
        self._log.close()
        if self._board:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One row for each step of each phase, in the order of their last lines; nan was written as None.

    A step may have several lines: its training and its evaluation, or a resume that repeats it. A later number counts.

    Raises InputError if there is no such file or a line before the last is broken.
    """
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_jsonl(path).rows:
        key = row["phase"], row["step"]
        latest[key] = latest.pop(key, {}) | row
    return list(latest.values())


def _open_tensorboard(folder: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"telemetry.tensorboard is on, but tensorboard is not installed ({error}). "
            f'Install it (pip install "minillm_ray[tensorboard]"), or turn the switch off; metrics.jsonl has the same '
            f"numbers."
        ) from error
    return SummaryWriter(str(folder))
