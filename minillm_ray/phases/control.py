"""Requests to a run that goes on, as files below RUN/control: they need shared storage, and no way to the cluster.

minillm-ray scale RUN rollout=4 --> RUN/control/scale-NUMBER.json --> the driver, about once a second
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm_ray.config.errors import InputError
from minillm_ray.phases.status import require_running
from minillm_ray.telemetry.files import write_atomically

SCALED_ROLES = ("rollout", "teacher")
_POLL_SECONDS = 1.0
_REQUESTS = "scale-*.json"


def parse_counts(assignments: Sequence[str]) -> dict[str, int]:
    """["rollout=4"] -> {"rollout": 4}. Raises InputError for another role, a number below 1, a role named twice."""
    counts: dict[str, int] = {}
    for assignment in assignments:
        role, _, number = assignment.partition("=")
        if role == "learner":
            raise InputError(
                f"{assignment}: the number of learner ranks cannot change while a run goes on; expected rollout=N or "
                f"teacher=N. Stop the run, then train with -s learner.ranks=N"
            )
        if role not in SCALED_ROLES:
            raise InputError(f"{assignment}: {role!r} is no role that can be scaled; write rollout=N or teacher=N")
        if not (number.isascii() and number.isdigit() and int(number) >= 1):
            raise InputError(f"{assignment}: {number!r} is no number of replicas; expected 1 or more, as in {role}=2")
        if role in counts:
            raise InputError(f"{assignment}: {role} is given twice; expected one number for each role")
        counts[role] = int(number)
    return counts


def request_scale(run_dir: Path, counts: Mapping[str, int]) -> None:
    """Ask the run in `run_dir` for these numbers of replicas. Raises InputError where no run goes on there."""
    require_running(run_dir)
    # Time orders the requests of one host, the process number keeps two of the same moment apart.
    name = f"scale-{time.time_ns():020d}-{os.getpid()}.json"
    write_atomically(_folder(run_dir) / name, json.dumps(dict(counts)))


class ScaleRequests:
    """The driver's side. What was asked before it is made is discarded: that was meant for an earlier driver."""

    def __init__(
        self,
        run_dir: Path,
        *,
        write_event: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = _folder(run_dir)
        self._write_event, self._clock = write_event, clock
        self._polled_at = float("-inf")
        for counts in self._take():
            write_event("scale_discarded", counts | {"reason": "it was asked of an earlier driver"})

    def __call__(self) -> dict[str, int]:
        """Wanted replicas by role, once for each request; where a role was asked for twice, the newer one."""
        now = self._clock()
        if now - self._polled_at < _POLL_SECONDS:
            return {}
        self._polled_at = now
        wanted: dict[str, int] = {}
        for counts in self._take():
            self._write_event("scale_requested", counts)
            wanted |= counts
        return wanted

    def _take(self) -> list[dict[str, int]]:
        """Every readable request, oldest first. All of them are removed."""
        found = []
        for file in sorted(self._folder.glob(_REQUESTS)):
            try:
                found.append(parse_counts([f"{role}={count}" for role, count in json.loads(file.read_text()).items()]))
            except (ValueError, AttributeError, OSError) as error:
                self._write_event("scale_refused", {"file": file.name, "reason": str(error)})
            file.unlink(missing_ok=True)
        return found


def _folder(run_dir: Path) -> Path:
    return run_dir / "control"
