"""RUN/status.json: where a run stands, written by its driver every two seconds and read by anybody who sees the folder.

A thread writes it, so that it is fresh also while the driver waits; a file that has grown old tells of a killed driver.
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.files import write_atomically

_INTERVAL_SECONDS = 2.0
_STALE_SECONDS = 15.0


@dataclass(frozen=True)
class ReplicaStatus:
    """state: for people; version: of its weights, 0 for none; load: responses that it has in hand."""

    number: int
    state: str
    version: int
    load: int


@dataclass(frozen=True)
class Status:
    """time: seconds since the epoch, when this was true. weight_version: the newest published one, 0 before the first.

    phase, step, total_steps: the phase under way, empty and 0 before the first; ended: the driver has left.
    """

    time: float
    pid: int
    phase: str = ""
    step: int = 0
    total_steps: int = 0
    weight_version: int = 0
    replicas: Mapping[str, Sequence[ReplicaStatus]] = field(default_factory=dict)
    ended: bool = False

    def is_running(self, now: float) -> bool:
        return not self.ended and now - self.time < _STALE_SECONDS


class StatusFile:
    """The driver's side: it tells what changes, the file follows. A full disk leaves the file old and the run alone."""

    def __init__(self, run_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = _path(run_dir)
        self._clock = clock
        self._status = Status(clock(), os.getpid())
        self._left = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep_fresh, name="status", daemon=True)
        self._thread.start()

    def begin(self, phase: str, *, total_steps: int, done_steps: int = 0) -> None:
        """A phase begins, with `done_steps` of its optimizer steps made before a resume."""
        self._status = replace(self._status, phase=phase, step=done_steps, total_steps=total_steps)

    def step(self, step: int) -> None:
        """Step number `step` of the phase is made."""
        self._status = replace(self._status, step=step)

    def crew(self, weight_version: int, replicas: Mapping[str, Sequence[ReplicaStatus]]) -> None:
        """The replicas that there are, by role."""
        self._status = replace(self._status, weight_version=weight_version, replicas=replicas)

    def close(self) -> None:
        """The run has ended, however it did."""
        self._left.set()
        self._thread.join()
        self._status = replace(self._status, ended=True, replicas={})
        self._write()

    def _keep_fresh(self) -> None:
        while not self._left.wait(_INTERVAL_SECONDS):
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            write_atomically(self._path, json.dumps(asdict(replace(self._status, time=self._clock())), indent=1))


def read_status(run_dir: Path) -> Status:
    """Raises InputError where no driver has ever written one."""
    path = _path(run_dir)
    if not path.is_file():
        raise InputError(f"{run_dir} has no {path.name}; expected the run_dir of a run. Check the path")
    try:
        tree = json.loads(path.read_text())
        replicas = {role: [ReplicaStatus(**one) for one in some] for role, some in tree.pop("replicas").items()}
        return Status(replicas=replicas, **tree)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} is not what a driver writes; expected the run_dir of a run. Check the path") from None


def require_running(run_dir: Path) -> Status:
    """The status of a run that goes on. Raises InputError where none does."""
    status, now = read_status(run_dir), time.time()
    if not status.is_running(now):
        raise InputError(
            f"{run_dir}: {_ending(status, now)}; expected a run that goes on. Continue it with minillm-ray train"
        )
    return status


def print_status(run_dir: Path) -> None:
    """For a person: a line on the run and a table of its replicas, those that are alike in one row."""
    from minillm_ray.telemetry.console import print_table

    status, now = read_status(run_dir), time.time()
    where = f"{status.phase}, step {status.step} of {status.total_steps}" if status.phase else "before its first phase"
    if not status.is_running(now):
        print(f"{run_dir}: {where}; {_ending(status, now)}")
        return
    print(f"{run_dir}: {where}, weight version {status.weight_version}; running as process {status.pid}")
    if status.replicas:
        print_table("Replicas", ("role", "replicas", "state", "weights", "in hand"), _rows(status))


def _ending(status: Status, now: float) -> str:
    if status.ended:
        return "not running, it has ended"
    return f"not running, its last sign of life is {now - status.time:.0f} s old"


def _rows(status: Status) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for role, replicas in status.replicas.items():
        alike: dict[tuple[str, int], list[ReplicaStatus]] = defaultdict(list)
        for one in replicas:
            alike[one.state, one.version].append(one)
        for (state, version), some in alike.items():
            weights = f"version {version}" if version else "-"
            in_hand = str(sum(one.load for one in some))
            rows.append((role, _numbers([one.number for one in some]), state, weights, in_hand))
    return rows


def _numbers(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _path(run_dir: Path) -> Path:
    return run_dir / "status.json"
