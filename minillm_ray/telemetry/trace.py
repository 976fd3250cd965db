"""RUN/trace.json: what every replica did when, for https://ui.perfetto.dev or chrome://tracing.

The format is Chrome's JSON array of events, one a line, in microseconds since the epoch. A run that is killed leaves
the array without its closing bracket, which both viewers accept; a run that ends closes it, one that resumes goes on in
it. A file that has grown too large is closed and kept as trace.earlier.json in place of the one before.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from minillm_ray.telemetry.activity import Slice

_MAX_BYTES = 25_000_000
"""Of one file; there are two at most."""
_MAX_HELD_SECONDS = 10.0
"""A slice that goes on is written once it is so long: what a killed run loses."""
_SAME_MOMENT_SECONDS = 1e-3
_PROCESSES = {"rollout": 1, "teacher": 2, "learner": 3}


class TraceWriter:
    """One track a replica, those of a role together.

    epoch: what, added to the times of slices, gives seconds since 1970. A file that cannot be written any more (a full
    disk) stays as it is: no run ends for want of its trace.
    """

    def __init__(self, path: Path, *, epoch: float = 0.0, max_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._epoch = epoch
        self._max_bytes = max_bytes
        self._held: dict[tuple[str, int], Slice] = {}
        self._named: set[tuple[str, int]] = set()
        self._file: BinaryIO | None = None
        try:
            self._open(_whole_events(path))
        except OSError:
            self._file = None

    def slice(self, found: Slice) -> None:
        """Add it. One that continues the last of its track, under the same name, is joined to it."""
        track = found.role, found.number
        last = self._held.get(track)
        if last is not None:
            continues = last.name == found.name and found.begin - last.end < _SAME_MOMENT_SECONDS
            if continues and last.end - last.begin < _MAX_HELD_SECONDS:
                self._held[track] = replace(last, end=found.end)
                return
            self._write_slice(last)
        self._held[track] = found

    def instant(self, role: str, number: int, name: str, fields: Mapping[str, Any], *, at: float) -> None:
        """A mark on a track: a death, a change of scale. fields: JSON values."""
        event = {"name": name, "ph": "i", "s": "t", "ts": self._microseconds(at), "args": dict(fields)}
        self._write(event, role, number)

    def close(self) -> None:
        """Write what is held and close the array."""
        for found in self._held.values():
            self._write_slice(found)
        self._held.clear()
        with suppress(OSError):
            self._end_file()

    def _write_slice(self, found: Slice) -> None:
        event = {
            "name": found.name,
            "cat": found.kind,
            "ph": "X",
            "ts": self._microseconds(found.begin),
            "dur": round((found.end - found.begin) * 1e6),
        }
        self._write(event, found.role, found.number)

    def _write(self, event: dict[str, Any], role: str, number: int) -> None:
        try:
            if self._file is not None and self._file.tell() > self._max_bytes:
                self._end_file()
                self._path.replace(self._path.with_name("trace.earlier.json"))
                self._open(b"")
            place = {"pid": _PROCESSES[role], "tid": number}
            if (role, number) not in self._named:
                self._named.add((role, number))
                self._append({"name": "process_name", "ph": "M", **place, "args": {"name": role}})
                self._append({"name": "thread_name", "ph": "M", **place, "args": {"name": f"{role} {number}"}})
            self._append(event | place)
        except OSError:
            self._file = None

    def _append(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        separator = ",\n" if self._file.tell() else "[\n"
        # In one piece and unbuffered: a killed run leaves whole events.
        self._file.write((separator + json.dumps(event, allow_nan=False)).encode())

    def _open(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("r+b" if content else "wb", buffering=0)
        self._file.truncate(len(content))
        self._file.seek(len(content))
        self._named.clear()

    def _end_file(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            file.write(b"\n]\n" if file.tell() else b"[]\n")

    def _microseconds(self, at: float) -> int:
        return round((at + self._epoch) * 1e6)


def _whole_events(path: Path) -> bytes:
    """The beginning of an earlier trace up to its last whole event, without the closing bracket; empty without any."""
    if not path.exists():
        return b""
    content = path.read_bytes().rstrip().removesuffix(b",")
    before, _, last = content.rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:  # half an event, or the closing bracket
        content = before.removesuffix(b",")
    return content if content.startswith(b"[\n") else b""
