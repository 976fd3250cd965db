"""A path on the command line is meant from where the command runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minillm_ray.config import load_config


def test_a_relative_path_of_an_override_starts_where_the_command_runs(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's own paths start at the file; -s paths at the working directory; what is not there is left alone."""
    config_file = write_run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(elsewhere)
    config = load_config(config_file, ["data.train=rows.jsonl", "run_dir=out", "teacher.model=owner/name"])
    assert config.data.train == str(elsewhere / "rows.jsonl")
    assert config.run_dir == elsewhere / "out"
    assert config.teacher.model == "owner/name"
    assert config.data.held_out == str(tmp_path / "held_out.jsonl")
