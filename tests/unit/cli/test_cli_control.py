"""`status` and `scale` from the command line, beside a run that goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm_ray.cli import main
from minillm_ray.phases.control import ScaleRequests
from minillm_ray.phases.status import StatusFile


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run that goes on."""
    status = StatusFile(tmp_path)
    status.begin("1-minillm", total_steps=10)
    yield tmp_path
    status.close()


def test_scale_returns_at_once_and_its_request_reaches_the_driver(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what was asked, and where to look."""
    requests = ScaleRequests(run_dir, write_event=lambda kind, fields: None)
    assert main(["scale", str(run_dir), "rollout=4", "teacher=2"]) == 0
    assert capsys.readouterr().out == (
        f"Asked {run_dir} for rollout=4 teacher=2; minillm-ray status {run_dir} shows how far it is.\n"
    )
    assert requests() == {"rollout": 4, "teacher": 2}


@pytest.mark.parametrize("count", ["rollout=0", "rollout=1.5", "learner=2", "actor=3"])
def test_what_cannot_be_asked_for_is_status_2_and_leaves_nothing(
    count: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message on stderr, and no request."""
    assert main(["scale", str(run_dir), count]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert output.err.startswith(f"{count}: ")
    assert not (run_dir / "control").exists()


def test_status_prints_where_the_run_stands(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before its first replica."""
    assert main(["status", str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith(f"{run_dir}: ")


@pytest.mark.parametrize("command", [["status"], ["scale", "rollout=2"]])
def test_a_folder_that_is_no_run_is_status_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the path, what was expected and what to do."""
    name, *counts = command
    assert main([name, str(tmp_path / "none"), *counts]) == 2
    expected = f"{tmp_path / 'none'} has no status.json; expected the run_dir of a run. Check the path\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []
