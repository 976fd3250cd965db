"""A request for another number of replicas: from a command, through a file, to the driver that takes it once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.phases.control import ScaleRequests, parse_counts, request_scale
from minillm_ray.phases.status import StatusFile


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The run_dir of a run that goes on, as far as anybody else can see."""
    StatusFile(tmp_path).close()
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(status | {"ended": False}))
    return tmp_path


class Driver:
    """The driver's side in `run_dir`, its events, and a clock of its own."""

    def __init__(self, run_dir: Path) -> None:
        self.events: list[tuple[str, Any]] = []
        self.now = 0.0
        self.requests = ScaleRequests(
            run_dir,
            write_event=lambda kind, fields: self.events.append((kind, dict(fields))),
            clock=lambda: self.now,
        )

    def after(self, seconds: float) -> dict[str, int]:
        self.now += seconds
        return self.requests()


def test_a_request_reaches_the_driver_once_and_is_an_event(running: Path) -> None:
    """Taken at the next look, about a second after the last; the file is gone then."""
    driver = Driver(running)
    assert driver.after(0.0) == {}
    request_scale(running, {"rollout": 4, "teacher": 2})
    assert driver.after(0.5) == {}
    assert driver.after(0.5) == {"rollout": 4, "teacher": 2}
    assert driver.events == [("scale_requested", {"rollout": 4, "teacher": 2})]
    assert driver.after(1.0) == {}
    assert list((running / "control").iterdir()) == []


def test_of_two_requests_for_a_role_the_newer_counts_and_none_for_another_role_is_lost(running: Path) -> None:
    """All that came between two looks is heard in order."""
    driver = Driver(running)
    for counts in ({"rollout": 9}, {"teacher": 3}, {"rollout": 4}):
        request_scale(running, counts)
    assert driver.after(1.0) == {"rollout": 4, "teacher": 3}
    assert [counts for _, counts in driver.events] == [{"rollout": 9}, {"teacher": 3}, {"rollout": 4}]


def test_a_request_left_from_an_earlier_driver_is_discarded_and_said_so(running: Path) -> None:
    """A resumed run starts with the size that its configuration gives."""
    request_scale(running, {"rollout": 4})
    driver = Driver(running)
    assert driver.events == [("scale_discarded", {"rollout": 4, "reason": "it was asked of an earlier driver"})]
    assert driver.after(1.0) == {}


@pytest.mark.parametrize("content", ['{"rollout": 0}', '{"rollout": "many"}', '{"learner": 2}', "[4]", '{"rollo'])
def test_a_file_that_is_no_request_is_refused_removed_and_stops_nothing(running: Path, content: str) -> None:
    """Written by hand, or by another release."""
    driver = Driver(running)
    (running / "control").mkdir(exist_ok=True)
    (running / "control" / "scale-1.json").write_text(content)
    assert driver.after(1.0) == {}
    ((kind, fields),) = driver.events
    assert (kind, fields["file"]) == ("scale_refused", "scale-1.json")
    assert list((running / "control").iterdir()) == []


@pytest.mark.parametrize(
    ("assignments", "parts"),
    [
        (["rollout=0"], ["rollout=0", "'0' is no number of replicas", "expected 1 or more", "rollout=2"]),
        (["rollout=-1"], ["'-1'", "expected 1 or more"]),
        (["rollout=2.5"], ["'2.5'", "expected 1 or more"]),
        (["teacher=two"], ["'two'", "expected 1 or more", "teacher=2"]),
        (["rollout"], ["rollout: ''", "expected 1 or more"]),
        (["worker=2"], ["'worker' is no role that can be scaled", "write rollout=N or teacher=N"]),
        (["learner=2"], ["learner ranks cannot change while a run goes on", "-s learner.ranks=N"]),
        (["rollout=2", "rollout=3"], ["rollout=3: rollout is given twice", "expected one number for each role"]),
    ],
)
def test_what_cannot_be_asked_for_is_refused(assignments: list[str], parts: list[str]) -> None:
    """With the value, what was expected and what to write."""
    with pytest.raises(InputError) as caught:
        parse_counts(assignments)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def remove(run_dir: Path) -> None:
    (run_dir / "status.json").unlink()


def end(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps(status | {"ended": True}))


def grow_old(run_dir: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps(status | {"time": status["time"] - 60}))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove, "has no status.json; expected the run_dir of a run"),
        (end, "not running, it has ended; expected a run that goes on"),
        (grow_old, "not running, its last sign of life is 6"),
    ],
)
def test_a_run_that_does_not_go_on_is_asked_for_nothing(
    running: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    """No run, an ended one, a killed one: no file is left for the next driver."""
    spoil(running)
    with pytest.raises(InputError) as caught:
        request_scale(running, {"rollout": 2})
    assert str(running) in str(caught.value)
    assert expected in str(caught.value)
    assert not (running / "control").exists()
