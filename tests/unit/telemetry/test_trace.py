"""trace.json can be opened whenever it is read: after a clean end, a kill or a resume, however long the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.telemetry.activity import Slice
from minillm_ray.telemetry.trace import TraceWriter


def busy(begin: float, end: float, *, name: str = "busy", role: str = "rollout", number: int = 0) -> Slice:
    return Slice(role, number, "busy", name, begin, end)


def spans(events: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Name, begin and duration in microseconds of every slice."""
    return [(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"]


def test_a_clean_end_leaves_a_whole_json_array(tmp_path: Path) -> None:
    """A named track a replica, slices with begin and duration, a mark for a death."""
    path = tmp_path / "trace.json"
    trace = TraceWriter(path, epoch=1000.0)
    trace.slice(busy(1.0, 2.5))
    trace.slice(Slice("rollout", 0, "waiting_weights", "pulling weights", 2.5, 3.0))
    trace.slice(busy(1.0, 4.0, name="optimizer step 1", role="learner"))
    trace.instant("rollout", 0, "rollout_lost", {"number": 0, "reason": "killed"}, at=3.25)
    trace.close()
    events = json.loads(path.read_text())
    assert set(spans(events)) == {
        ("busy", 1_001_000_000, 1_500_000),
        ("pulling weights", 1_002_500_000, 500_000),
        ("optimizer step 1", 1_001_000_000, 3_000_000),
    }
    (death,) = [event for event in events if event["ph"] == "i"]
    assert (death["name"], death["ts"], death["args"]["reason"]) == ("rollout_lost", 1_003_250_000, "killed")
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert set(names.values()) == {"rollout 0", "learner 0"}
    assert {(event["pid"], event["tid"]) for event in events} == set(names)


def test_a_trace_without_an_event_is_an_empty_array(tmp_path: Path) -> None:
    """A run that ends before its first slice."""
    TraceWriter(tmp_path / "trace.json").close()
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_slices_that_continue_one_another_are_one(tmp_path: Path) -> None:
    """Beats cut the time in pieces; another name, a gap or ten seconds begin a new slice."""
    path = tmp_path / "trace.json"
    trace = TraceWriter(path)
    for begin in range(0, 24, 2):
        trace.slice(busy(begin, begin + 2.0))
    trace.slice(busy(24.0, 25.0, name="other"))
    trace.slice(busy(26.0, 27.0, name="other"))
    trace.close()
    assert spans(json.loads(path.read_text())) == [
        ("busy", 0, 10_000_000),
        ("busy", 10_000_000, 10_000_000),
        ("busy", 20_000_000, 4_000_000),
        ("other", 24_000_000, 1_000_000),
        ("other", 26_000_000, 1_000_000),
    ]


@pytest.mark.parametrize("cut", ["", '\n{"name": "bu', ',\n{"name": "busy", "ts"', ","])
def test_a_killed_run_leaves_whole_events_and_a_resume_goes_on_in_the_same_array(tmp_path: Path, cut: str) -> None:
    """What was written is there without a close; half an event at the end goes when the run continues."""
    path = tmp_path / "trace.json"
    killed = TraceWriter(path)
    killed.instant("teacher", 1, "teacher_lost", {"number": 1}, at=1.0)
    written = path.read_text()
    assert [event["name"] for event in json.loads(written + "]")][-1] == "teacher_lost"
    path.write_text(written + cut)
    resumed = TraceWriter(path)
    resumed.instant("teacher", 1, "teacher_ready", {"number": 1}, at=2.0)
    resumed.close()
    ended = TraceWriter(path)  # and once more after a clean end
    ended.slice(busy(3.0, 4.0))
    ended.close()
    names = [event["name"] for event in json.loads(path.read_text()) if event["ph"] != "M"]
    assert names == ["teacher_lost", "teacher_ready", "busy"]


def test_the_size_on_disk_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    """A full file is closed and moved aside in place of the one before: two files, both whole."""
    path = tmp_path / "trace.json"
    trace = TraceWriter(path, max_bytes=5_000)
    for step in range(400):
        trace.slice(busy(step, step + 1.0, name=f"optimizer step {step}", role="learner"))
    trace.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["trace.earlier.json", "trace.json"]
    earlier, latest = (json.loads((tmp_path / name).read_text()) for name in files)
    assert all((tmp_path / name).stat().st_size < 6_000 for name in files)
    names = [event[0] for event in spans(earlier + latest)]
    assert names == [f"optimizer step {step}" for step in range(400 - len(names), 400)]
    assert all("thread_name" in [event["name"] for event in part] for part in (earlier, latest))


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk, no trace: what is there stays as it is."""
    path = tmp_path / "trace.json"
    trace = TraceWriter(path)
    trace.instant("rollout", 0, "rollout_ready", {}, at=1.0)
    before = path.read_text()

    def no_space(event: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace, "_append", no_space)
    trace.instant("rollout", 0, "rollout_lost", {}, at=2.0)
    trace.close()
    assert path.read_text() == before
    (tmp_path / "file").write_text("")
    TraceWriter(tmp_path / "file" / "trace.json").close()
