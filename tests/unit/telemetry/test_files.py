"""Files are whole at any moment, and a log survives a crash in the middle of a line."""

import json
import os
from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry import files
from minillm_ray.telemetry.files import JsonlWriter, folder_beside, read_jsonl, replace_folder, write_atomically


@pytest.mark.parametrize("content", ["nats: é", b"\x00\xff"])
def test_what_was_written_is_read_back_and_nothing_lies_beside_it(tmp_path: Path, content: str | bytes) -> None:
    write_atomically(tmp_path / "new" / "file", content)
    expected = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "new" / "file").read_bytes() == expected
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(files.os, "fsync", _disk_full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_written_file_has_the_permissions_that_the_user_asked_for(tmp_path: Path) -> None:
    """As any file made by open(): not the 0600 of a temporary one."""
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_replaced_folder_holds_only_the_new_files(tmp_path: Path) -> None:
    final = tmp_path / "student"
    for name in ("old", "new"):
        temporary = folder_beside(final)
        (temporary / "inner").mkdir()
        (temporary / "inner" / name).touch()
        replace_folder(temporary, final)
    assert [entry.name for entry in (final / "inner").iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("left_over", ["", '{"step": 3', '{"step": 3}', "x" * 200_000])
def test_a_line_that_a_crash_cut_off_is_reported_and_then_replaced(tmp_path: Path, left_over: str) -> None:
    """Without its newline a line is cut, even where what is there happens to be JSON."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + left_over)
    assert read_jsonl(path).rows == [{"step": 1}, {"step": 2}]
    assert read_jsonl(path).cut_line == (left_over or None)
    with JsonlWriter(path) as log:
        log.append({"step": 3, "text": "é"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "text": "é"},
    ]


def test_a_reader_sees_a_line_as_soon_as_append_returns(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "log.jsonl") as log:
        log.append({"step": 1})
        assert read_jsonl(tmp_path / "log.jsonl").rows == [{"step": 1}]


@pytest.mark.parametrize("broken", ["{", "[1]", "nonsense"])
def test_a_broken_line_in_the_middle_is_named_with_file_and_line(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + broken + '\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"log\.jsonl:2: "):
        read_jsonl(path)


def test_reading_a_log_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_jsonl(tmp_path / "log.jsonl")


def _disk_full(handle: int) -> None:
    raise OSError(f"no space left for {os.fstat(handle).st_size} bytes")
