"""status.json: what anybody who sees a run's folder can know of it, and when it is not to be believed."""

import json
import os
from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.phases.status import ReplicaStatus, StatusFile, print_status, read_status


def test_the_file_follows_the_run_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phase, step, weights, replicas and process; after the end no replica is left."""
    monkeypatch.setattr("minillm_ray.phases.status._INTERVAL_SECONDS", 0.01)
    file = StatusFile(tmp_path)
    first = read_status(tmp_path)
    assert (first.pid, first.phase, first.ended) == (os.getpid(), "", False)
    file.begin("1-minillm", total_steps=20, done_steps=4)
    file.step(5)
    serving = ReplicaStatus(number=0, state="serving", version=3, load=7)
    file.crew(3, {"rollout": [serving]})
    while (status := read_status(tmp_path)).step < 5 or not status.replicas:
        pass
    assert (status.phase, status.step, status.total_steps, status.weight_version) == ("1-minillm", 5, 20, 3)
    assert status.replicas == {"rollout": [serving]}
    assert status.is_running(status.time + 14)
    assert not status.is_running(status.time + 16)
    file.close()
    last = read_status(tmp_path)
    assert (last.ended, last.step, last.replicas) == (True, 5, {})
    assert not last.is_running(last.time)


def test_a_disk_that_takes_no_status_stops_nothing(tmp_path: Path) -> None:
    """A run does not end for want of it."""
    (tmp_path / "run").write_text("not a folder")
    StatusFile(tmp_path / "run").close()


@pytest.mark.parametrize("content", ["[]", "{}", '{"pid": 1', '{"replicas": {}, "colour": "blue"}'])
def test_what_no_driver_wrote_is_refused(tmp_path: Path, content: str) -> None:
    """A file of that name that is something else."""
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(InputError, match=r"status\.json is not what a driver writes; expected the run_dir of a run"):
        read_status(tmp_path)


def test_a_person_sees_the_run_and_its_replicas_on_one_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replicas that are alike share a row, so that a hundred of them fit."""
    file = StatusFile(tmp_path)
    file.begin("3-minillm", total_steps=100)
    file.step(12)
    rollout = [ReplicaStatus(number, "serving", 4, 2) for number in range(100) if number != 50]
    file.crew(
        4,
        {
            "rollout": [*rollout, ReplicaStatus(100, "waiting for resources", 0, 0)],
            "teacher": [ReplicaStatus(0, "serving", 0, 5)],
        },
    )
    file._write()
    print_status(tmp_path)
    file.close()
    output = capsys.readouterr().out
    assert f"3-minillm, step 12 of 100, weight version 4; running as process {os.getpid()}" in output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert rows == [
        ["rollout", "0-49, 51-99", "serving", "version 4", "198"],
        ["rollout", "100", "waiting for resources", "-", "0"],
        ["teacher", "0", "serving", "-", "5"],
    ]
    print_status(tmp_path)
    assert "step 12 of 100; not running, it has ended" in capsys.readouterr().out


def test_a_killed_run_is_not_said_to_be_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file is the last word of a process that is gone."""
    StatusFile(tmp_path).close()
    path = tmp_path / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {"ended": False, "time": status["time"] - 100}))
    print_status(tmp_path)
    assert "before its first phase; not running, its last sign of life is 10" in capsys.readouterr().out
