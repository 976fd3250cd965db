"""RUN/events.jsonl: what happened that is not a number of a step: a death, a restart, a change of scale, a resume."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.files import JsonlWriter, read_jsonl


@dataclass(frozen=True)
class Event:
    """time: seconds since the epoch. kind: "rollout_died". fields: JSON values that say which, where and why."""

    time: float
    kind: str
    fields: Mapping[str, Any]


class EventsWriter:
    """Appends events, each flushed before `write` returns. An existing file is continued."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._log = JsonlWriter(path)
        self._clock = clock

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one event, stamped now. Raises TypeError or ValueError for a field that JSON cannot hold."""
        self._log.append({"time": self._clock(), "kind": kind, "fields": dict(fields)})

    def close(self) -> None:
        self._log.close()


def read_events(path: Path) -> list[Event]:
    """Every event in the order of the file. Raises InputError if the file is not there or is no log of events."""
    try:
        return [Event(row["time"], row["kind"], row["fields"]) for row in read_jsonl(path).rows]
    except KeyError as error:
        raise InputError(f"{path}: a line without {error}; expected the events.jsonl of a run") from None
