"""A checkpoint is whole or not there, whatever dies or breaks; the one before it is always intact."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_ray.checkpoint import files
from minillm_ray.checkpoint.files import CheckpointError, FileRecord, write_file
from minillm_ray.checkpoint.folder import Checkpoint, PendingCheckpoint, begin, latest, remove_leftovers

TESTS = Path(__file__).parents[2]


def write(checkpoints: Path, step: int, *, keep: int = 2) -> Checkpoint:
    """A checkpoint of two files, one of them in a folder as the learner's are."""
    pending = begin(checkpoints, step)
    return pending.seal(records_of(pending), weight_version=10 * step, keep=keep)


def records_of(pending: PendingCheckpoint) -> list[FileRecord]:
    return [
        write_file(pending.path, "pipeline.json", f"{pending.step}"),
        write_file(pending.path, "learner/rank-0.safetensors", [bytes(1000)]),
    ]


def newest(checkpoints: Path) -> tuple[int | None, list[str]]:
    """Step of the newest complete checkpoint, and the warnings about those after it."""
    warnings: list[str] = []
    found = latest(checkpoints, warn=warnings.append)
    return found and found.step, warnings


def names(checkpoints: Path) -> list[str]:
    return sorted(entry.name for entry in checkpoints.iterdir())


def test_what_was_sealed_is_found_with_its_step_and_version(tmp_path: Path) -> None:
    """And has exactly the files that were written, and the manifest."""
    sealed = write(tmp_path / "run" / "checkpoints", 123)
    assert sealed == Checkpoint(tmp_path / "run" / "checkpoints" / "step-000123", step=123, weight_version=1230)
    assert latest(sealed.path.parent, warn=pytest.fail) == sealed
    assert names(sealed.path) == ["learner", "manifest.json", "pipeline.json"]
    assert names(sealed.path.parent) == ["step-000123"]


def test_nothing_is_found_where_nothing_was_sealed(tmp_path: Path) -> None:
    """No folder, an empty one, one with other things in it, and one where a checkpoint is still being written."""
    assert newest(tmp_path / "none") == (None, [])
    (tmp_path / "step-12").mkdir()
    (tmp_path / "notes.txt").touch()
    records_of(begin(tmp_path, 1))
    assert newest(tmp_path) == (None, [])


def test_later_means_a_higher_step_not_a_later_name(tmp_path: Path) -> None:
    """A million steps have one digit more."""
    for step in (999_999, 1_000_000):
        write(tmp_path, step)
    assert newest(tmp_path) == (1_000_000, [])


def test_the_newest_are_kept_and_no_others(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step, keep=3)
        assert newest(tmp_path) == (step, [])
    assert names(tmp_path) == ["step-000003", "step-000004", "step-000005"]


def test_a_broken_checkpoint_does_not_count_as_one_that_is_kept(tmp_path: Path) -> None:
    """Neither one before the new one nor one after it, from which the run went back."""
    for step in (1, 2, 3, 9):
        write(tmp_path, step, keep=9)
    (tmp_path / "step-000002" / "pipeline.json").unlink()
    (tmp_path / "step-000009" / "pipeline.json").write_text("x")
    write(tmp_path, 4, keep=3)
    assert names(tmp_path) == ["step-000001", "step-000003", "step-000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """As when the one that was there is broken and the run comes to its step again."""
    for _ in range(2):
        write(tmp_path, 1)
        (tmp_path / "step-000001" / "pipeline.json").write_text("broken")
    sealed = write(tmp_path, 1)
    assert (sealed.path / "pipeline.json").read_text() == "1"
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("file", ["pipeline.json", "learner/rank-0.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "longer", "flipped"])
def test_a_broken_file_sends_the_run_to_the_checkpoint_before(tmp_path: Path, file: str, damage: str) -> None:
    """With one warning that names the folder and the file."""
    write(tmp_path, 1)
    path = write(tmp_path, 2).path / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(
            {"truncated": content[:-1], "empty": b"", "longer": content + b"0", "flipped": flipped}[damage]
        )
    if (file, damage) == ("manifest.json", "truncated"):
        path.write_bytes(content[:-2])  # its last byte is a newline
    step, warnings = newest(tmp_path)
    assert step == 1
    (warning,) = warnings
    assert str(tmp_path / "step-000002") in warning
    assert file in warning
    if file != "manifest.json" and damage in ("truncated", "empty", "longer"):
        assert "bytes, expected" in warning  # known without reading it


def test_no_flipped_byte_of_the_manifest_changes_what_is_found(tmp_path: Path) -> None:
    """The manifest vouches for itself: with any bit of it turned it is refused, or says the same as before."""
    write(tmp_path, 1)
    sealed = write(tmp_path, 2)
    path = sealed.path / "manifest.json"
    content = path.read_bytes()
    generator = random.Random(0)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        found = latest(tmp_path, warn=lambda _: None)
        assert found is not None
        assert found == sealed or found.step == 1


def test_all_broken_is_as_none_with_a_warning_each(tmp_path: Path) -> None:
    """A file and an empty folder of a checkpoint's name are broken checkpoints too."""
    (tmp_path / "step-000003").touch()
    (tmp_path / "step-000002").mkdir()
    (write(tmp_path / "other", 1).path / "manifest.json").unlink()
    shutil.move(tmp_path / "other" / "step-000001", tmp_path)
    step, warnings = newest(tmp_path)
    assert step is None
    assert [f"step-00000{k}" in warning for k, warning in zip((3, 2, 1), warnings, strict=True)] == [True] * 3


@pytest.mark.parametrize(("kills", "at_least"), [("points", 60), ("moments", 10)])
def test_a_writer_killed_anywhere_leaves_a_complete_checkpoint(tmp_path: Path, kills: str, at_least: int) -> None:
    """See tests/scripted/killed_writer.py, which makes the checks."""
    program = TESTS / "scripted" / "killed_writer.py"
    done = subprocess.run(
        [sys.executable, str(program), kills, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= at_least


def test_what_a_dead_writer_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """Half a checkpoint, one that was being removed, one that was already replaced; other hidden files stay."""
    write(tmp_path, 1)
    records_of(begin(tmp_path, 2))
    for name in (".step-000001.replaced-00c0ffee", ".step-000000.removed-00c0ffee", ".step-notes"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".step-notes", "step-000001"]
    remove_leftovers(tmp_path / "none")


def test_a_replaced_checkpoint_comes_back_if_the_new_one_did_not_arrive(tmp_path: Path) -> None:
    """Between the two renames of a replacement there is neither under its name."""
    sealed = write(tmp_path, 1)
    os.rename(sealed.path, tmp_path / ".step-000001.replaced-00c0ffee")
    remove_leftovers(tmp_path)
    assert latest(tmp_path, warn=pytest.fail) == sealed


@pytest.mark.parametrize("file", ["pipeline.json", "learner/rank-1.safetensors"])
def test_given_up_it_leaves_nothing_and_a_late_writer_brings_nothing_back(tmp_path: Path, file: str) -> None:
    """A rank that is still writing gets an error."""
    write(tmp_path, 1)
    pending = begin(tmp_path, 2)
    records_of(pending)
    pending.discard()
    assert names(tmp_path) == ["step-000001"]
    with pytest.raises(CheckpointError, match="its folder is gone"):
        write_file(pending.path, file, [b"late"])
    assert names(tmp_path) == ["step-000001"]


def test_a_file_that_a_rank_wrote_elsewhere_is_missed_when_sealing(tmp_path: Path) -> None:
    """A run folder that nodes do not share: the message says so, and the checkpoint is given up."""
    write(tmp_path, 1)
    pending = begin(tmp_path, 2)
    elsewhere = FileRecord("learner/rank-1.safetensors", 8, "0" * 32)
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors is missing .*put run_dir on shared storage"):
        pending.seal([*records_of(pending), elsewhere], weight_version=1, keep=2)
    assert names(tmp_path) == ["step-000001"]


_LIMITED = """
import resource, sys
from pathlib import Path
from minillm_ray.checkpoint.files import CheckpointError, write_file
from minillm_ray.checkpoint.folder import begin

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # python ignores SIGXFSZ: write() fails with EFBIG
pending = begin(Path(sys.argv[1]), 2)
write_file(pending.path, "pipeline.json", "2")
try:
    write_file(pending.path, "learner/rank-0.safetensors", [bytes(5 << 20)])
except CheckpointError as error:
    pending.discard()
    print(error)
"""


def test_a_file_size_limit_while_writing_leaves_the_last_one_intact(tmp_path: Path) -> None:
    """The error names the file, what it needs and what to do, and nothing of the new checkpoint stays."""
    sealed = write(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"{tmp_path}/.step-000002.tmp-" in done.stdout
    assert "learner/rank-0.safetensors: cannot be written: File too large. It needs 5.2 MB; " in done.stdout
    assert "Raise the limit on the size of a file (ulimit -f)" in done.stdout
    assert latest(tmp_path, warn=pytest.fail) == sealed
    assert names(tmp_path) == ["step-000001"]


def test_a_full_disk_while_sealing_leaves_the_last_one_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is written last, and may be what does not fit any more."""
    sealed = write(tmp_path, 1)
    pending = begin(tmp_path, 2)
    records = records_of(pending)
    monkeypatch.setattr(files.os, "fsync", _disk_full)
    with pytest.raises(CheckpointError, match=r"step-000002.*No space left.*MB are free.*lower checkpoint\.keep"):
        pending.seal(records, weight_version=1, keep=2)
    assert names(tmp_path) == ["step-000001"]
    assert latest(tmp_path, warn=pytest.fail) == sealed


def _disk_full(handle: int) -> None:
    raise OSError(28, os.strerror(28))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Here a file is in its place."""
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"checkpoints.*cannot be written.*choose another run_dir"):
        begin(tmp_path / "checkpoints", 1)
