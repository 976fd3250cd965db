"""RUN/checkpoints/step-000123/: whole or not there.

    begin -> .step-000123.tmp-1f2e3d4c/ <- files, from any process -> seal: manifest, fsync, rename -> step-000123/

Invariant: whatever dies whenever, the newest checkpoint that was sealed is found by `latest`, and a folder of that name
is either complete or known to be broken. Older ones are removed only once a newer one is on disk.

Each writer flushes its own files and hands the FileRecord to whoever seals. One process at a time begins, seals
and removes. Not here: what the files hold.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm_ray.checkpoint.files import CheckpointError, FileRecord, sync_folder, write_error
from minillm_ray.checkpoint.manifest import (
    BrokenCheckpoint,
    Manifest,
    read_manifest,
    verify_hashes,
    verify_sizes,
    write_manifest,
)

_NAME = re.compile(r"step-(\d{6,})")
_HIDDEN = re.compile(r"\.(step-\d{6,})\.(tmp|replaced|removed)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. step: optimizer steps done; weight_version: the last one published."""

    path: Path
    step: int
    weight_version: int


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint that is being written. path: where its files go; the rest sees nothing of it until `seal`."""

    path: Path
    step: int

    def seal(self, files: Sequence[FileRecord], *, weight_version: int, keep: int) -> Checkpoint:
        """Make it the newest checkpoint and remove all but the `keep` newest complete ones.

        files: the record of every file that was written, by whichever process. A checkpoint of a later step is
        removed too: the run went back before it, because it was broken.

        Raises CheckpointError, and then gives this checkpoint up, if a file is not there or the disk refuses.
        """
        final = self.path.with_name(_name(self.step))
        try:
            verify_sizes(self.path, files)
            write_manifest(self.path, Manifest(self.step, weight_version, tuple(files)))
            for folder in {(self.path / record.name).parent for record in files} | {self.path}:
                sync_folder(folder)
            if final.exists():
                os.rename(final, _hidden_beside(final, "replaced"))
            os.rename(self.path, final)
            sync_folder(final.parent)
        except BrokenCheckpoint as broken:
            self.discard()
            raise CheckpointError(
                f"{self.path}: {broken}. Every node must write to the same folder: put run_dir on shared storage"
            ) from None
        except CheckpointError:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise write_error(final, error, size_bytes=sum(record.size_bytes for record in files)) from error
        _remove_all_but_newest(final.parent, newest=self.step, keep=keep)
        return Checkpoint(final, self.step, weight_version)

    def discard(self) -> None:
        """Give it up; its files are removed, and a writer that comes late gets a CheckpointError."""
        shutil.rmtree(self.path, ignore_errors=True)


def begin(checkpoints: Path, step: int) -> PendingCheckpoint:
    """A folder for the files of a checkpoint after `step` optimizer steps. Raises CheckpointError."""
    path = _hidden_beside(checkpoints / _name(step), "tmp")
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise write_error(path, error, size_bytes=0) from error
    return PendingCheckpoint(path, step)


def latest(checkpoints: Path, *, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written; None where there is none.

    warn: gets one sentence for each newer one that is broken. Reads whole checkpoints; never raises.
    """
    for folder in _newest_first(checkpoints):
        try:
            manifest = read_manifest(folder)
            verify_sizes(folder, manifest.files)
            verify_hashes(folder, manifest.files)
        except BrokenCheckpoint as broken:
            warn(f"{folder} is skipped for the checkpoint before it: {broken}")
            continue
        return Checkpoint(folder, manifest.step, manifest.weight_version)
    return None


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a writer that died left behind, and bring back what it had only moved out of its way.

    For the start of a run, before anything is begun or read. What cannot be removed stays hidden and does no harm.
    """
    if not checkpoints.is_dir():
        return
    for entry in list(checkpoints.iterdir()):
        if match := _HIDDEN.fullmatch(entry.name):
            final = entry.with_name(match[1])
            if match[2] == "replaced" and not final.exists():
                os.rename(entry, final)
            else:
                shutil.rmtree(entry, ignore_errors=True)


def _remove_all_but_newest(checkpoints: Path, *, newest: int, keep: int) -> None:
    num_kept = 0
    for folder in _newest_first(checkpoints):
        if _step_of(folder) <= newest and num_kept < keep and _looks_complete(folder):
            num_kept += 1
            continue
        aside = _hidden_beside(folder, "removed")
        os.rename(folder, aside)  # so that nobody finds half of it
        shutil.rmtree(aside, ignore_errors=True)
    for entry in checkpoints.glob(".step-*.replaced-*"):
        shutil.rmtree(entry, ignore_errors=True)


def _looks_complete(folder: Path) -> bool:
    try:
        verify_sizes(folder, read_manifest(folder).files)
    except BrokenCheckpoint:
        return False
    return True


def _newest_first(checkpoints: Path) -> list[Path]:
    try:
        found = [entry for entry in checkpoints.iterdir() if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    return sorted(found, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _hidden_beside(final: Path, purpose: str) -> Path:
    return final.with_name(f".{final.name}.{purpose}-{uuid.uuid4().hex[:8]}")
