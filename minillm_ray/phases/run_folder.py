"""RUN on disk between two drivers: whose it is, whether it can be continued, which phases are finished."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minillm_ray.config.changes import fixed_changes
from minillm_ray.config.errors import InputError
from minillm_ray.config.load import load_config
from minillm_ray.config.run import RunConfig
from minillm_ray.phases.run_context import Models
from minillm_ray.telemetry.files import write_atomically

_CONFIG = "config.yaml"


def require_folder(run_dir: Path) -> None:
    """Raise InputError where a file has that name."""
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run_dir {run_dir} is a file; expected a folder. Choose another: -s run_dir=OTHER")


def is_continued(config: RunConfig) -> bool:
    """Whether run_dir holds an earlier run of this configuration, to be gone on with. False where it is new or empty.

    Raises InputError where it holds something else, or a run that computes something else.
    """
    run_dir = config.run_dir
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return False
    remedy = "Add --fresh to move it aside, or choose another: -s run_dir=OTHER"
    if not (run_dir / _CONFIG).is_file():
        raise InputError(f"run_dir {run_dir} holds no run, but is not empty; expected a new folder. {remedy}")
    before = load_config(run_dir / _CONFIG)  # what an older release did not know has its default
    changes = fixed_changes(before.model_dump(mode="json"), config.model_dump(mode="json"))
    if changes:
        listing = "\n".join(f"  {line}" for line in changes)
        raise InputError(
            f"run_dir {run_dir} holds a run with other settings; it cannot be continued with these:\n{listing}\n"
            f"Set them back. {remedy}"
        )
    return True


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Within the block no other driver works in run_dir. Raises InputError where one does.

    The lock goes with the process, however that ends; where the file system knows no locks there is none.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".driver").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"run_dir {run_dir} is in use by another train (process {file.read().strip() or 'unknown'}). Wait for "
                f"it, stop it, or choose another: -s run_dir=OTHER"
            ) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class FinishedPhase:
    """What a phase left: the models to go on with, and the rows of its table if it has one."""

    models: Models
    scores: dict[str, Any] | None


def finished_phase(run_dir: Path, name: str) -> FinishedPhase | None:
    """None for a phase that has not ended."""
    path = _record(run_dir, name)
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    models = {role: _from_record(run_dir, model) for role, model in record["models"].items()}
    return FinishedPhase(Models(**models), record["scores"])


def record_finished(run_dir: Path, name: str, phase: FinishedPhase) -> None:
    """From now on the phase is not run again."""
    models = {role: _to_record(run_dir, model) for role, model in asdict(phase.models).items()}
    write_atomically(_record(run_dir, name), json.dumps({"models": models, "scores": phase.scores}, indent=1))


def _record(run_dir: Path, name: str) -> Path:
    return run_dir / "phases" / name / "finished.json"


def _to_record(run_dir: Path, model: str) -> str:
    """Relative to the run's folder where it lies there, so that the folder may move."""
    return f"./{Path(model).relative_to(run_dir)}" if Path(model).is_relative_to(run_dir) else model


def _from_record(run_dir: Path, model: str) -> str:
    return str(run_dir / model[2:]) if model.startswith("./") else model
