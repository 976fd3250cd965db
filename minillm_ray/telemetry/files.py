"""Files that survive a crash: whole files are written beside and renamed, logs are cut back to their last full line.

Invariant: whoever opens a file named here, at any moment, finds the old content or the new one, never half of either.
Only a JSONL log may end in half a line; its reader reports that line and its writer removes it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from minillm_ray.config.errors import InputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) beside `path`, flush it to disk and rename it into place.

    Parent folders are made. Raises OSError (no space, no permission) and then leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _name_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def folder_beside(final: Path) -> Path:
    """A fresh empty folder on the same file system as `final`, to be filled and handed to `replace_folder`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = _name_beside(final)
    folder.mkdir()
    return folder


def replace_folder(temporary: Path, final: Path) -> None:
    """Flush every file of `temporary` to disk and rename the folder to `final`; an older `final` is removed.

    Both must lie on one file system. Where `final` exists there is an instant between two renames in which neither
    is at that name (a folder that is not empty cannot be renamed over); the old one is then at `.NAME.old`.
    """
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
        elif file.is_dir():
            _sync_folder(file)
    _sync_folder(temporary)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(temporary, final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


class JsonlWriter:
    """Appends one JSON object a line and flushes it, so that a reader beside the run sees it at once.

    A last line that a crash cut off is removed when the file is opened again; full lines are never touched.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write `row`. Raises ValueError for a float that JSON has no number for, TypeError for other types."""
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class JsonlContent:
    """rows: the objects in file order. cut_line: what a crash left of the last line, None where it is complete."""

    rows: list[dict[str, Any]]
    cut_line: str | None


def read_jsonl(path: Path) -> JsonlContent:
    """Every full line of a JSONL log, also while it is being written.

    Raises InputError, with file and line number, for a line before the end that is not a JSON object.
    """
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the log of a run") from None
    cut_line = lines.pop() or None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON ({error.msg}); expected one object a line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: {line[:60]!r} is not a JSON object; expected one object a line")
        rows.append(row)
    return JsonlContent(rows, cut_line)


def _remove_cut_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end, block = size, 1 << 16
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
