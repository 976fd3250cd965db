"""What the driver sees of a crew becomes idle times, a trace and a status."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.phases.crew_watch import CrewWatch
from minillm_ray.phases.status import ReplicaStatus
from minillm_ray.pipeline.replicas import Member, State


class Scene:
    """A crew of one replica a role, a watch on it, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.events: list[str] = []
        self.told: dict[str, Any] = {}
        self.rollout = Member("rollout", 0, State.SERVING, version=1, beat_at=1.0)
        self.teacher = Member("teacher", 0, State.SERVING, beat_at=1.0)
        self.too_old = False
        self.crew: Any = SimpleNamespace(
            rollout=SimpleNamespace(role="rollout", members=[self.rollout]),
            teacher=SimpleNamespace(role="teacher", members=[self.teacher]),
            ranks=SimpleNamespace(role="learner", members=[Member("learner", 0, State.SERVING)]),
            learner=SimpleNamespace(learner="a group", work_under_way=None),
            version=1,
            awaits_weights=lambda member: self.too_old,
        )
        self.file = folder / "trace.json"
        self.watch = CrewWatch(
            self.file,
            SimpleNamespace(crew=lambda version, replicas: self.told.update(version=version, replicas=replicas)),
            write_event=lambda kind, fields: self.events.append(kind),
            clock=lambda: self.now,
        )
        self.watch(self.crew)

    def after(self, seconds: float, *, busy: float | None = None) -> dict[str, float]:
        """Time passes with the crew as it was; both engines say how long they were busy in it."""
        self.now += seconds
        if busy is not None:
            for member in (self.rollout, self.teacher):
                member.busy_seconds += busy
                member.beat_at = self.now + 1.0
        self.watch(self.crew)
        return {name.removeprefix("pipeline/"): value for name, value in self.watch.take().items()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_replica_with_work_in_hand_is_busy_as_long_as_its_engine_says(scene: Scene) -> None:
    """Both engines worked half of the two seconds; the other half they waited, for the other's word or their turn."""
    scene.rollout.load = scene.teacher.load = 3
    scene.after(0.06, busy=0.0)
    taken = scene.after(2.0, busy=1.0)
    for role in ("rollout", "teacher"):
        assert taken[f"busy_seconds/{role}"] == pytest.approx(1.0)
        assert taken[f"waiting_input_seconds/{role}"] == pytest.approx(1.0)


def test_a_rollout_replica_waits_for_weights_while_it_pulls_and_while_its_own_are_too_old(scene: Scene) -> None:
    """With nothing in hand for another reason it waits for input."""
    assert scene.after(1.0, busy=0.0)["waiting_input_seconds/rollout"] == 1.0
    scene.too_old = True
    scene.after(0.06)
    assert scene.after(1.0, busy=0.0)["waiting_weights_seconds/rollout"] == pytest.approx(1.0)
    scene.too_old, scene.rollout.pulling = False, True
    scene.after(0.06)
    assert scene.after(1.0, busy=0.25)["waiting_weights_seconds/rollout"] == pytest.approx(0.75)


def test_the_learner_is_busy_with_each_call_and_gone_while_its_group_restarts(scene: Scene) -> None:
    """Calls that follow one another at once are told apart, however short."""
    learner = scene.crew.learner
    learner.work_under_way = "optimizer step 1"
    scene.after(0.0)
    learner.work_under_way = "optimizer step 2"
    scene.after(0.01)
    learner.work_under_way = None
    scene.after(0.01)
    learner.learner = None
    scene.after(1.0)
    assert "busy_seconds/learner" not in scene.after(5.0)
    scene.watch.close()
    slices = [event for event in json.loads(scene.file.read_text()) if event["ph"] == "X"]
    assert [(event["name"], event["dur"]) for event in slices if event["pid"] == 3] == [
        ("optimizer step 1", 10_000),
        ("optimizer step 2", 10_000),
        ("waiting for input", 1_000_000),
    ]


def test_a_replica_that_is_not_there_yet_waits_for_nothing(scene: Scene) -> None:
    """Reserved and starting replicas are in the status, not in the idle times."""
    scene.rollout.state = State.STARTING
    scene.after(1.0)
    assert "busy_seconds/rollout" not in scene.after(1.0)
    assert scene.told["replicas"]["rollout"] == [ReplicaStatus(0, "starting", 1, 0)]
    assert scene.told["version"] == 1


def test_an_event_of_a_replica_is_written_and_marked_on_its_track(scene: Scene) -> None:
    """A death shows in events.jsonl and in the trace."""
    scene.watch.event("teacher_lost", {"number": 0, "reason": "killed"})
    scene.watch.close()
    (mark,) = [event for event in json.loads(scene.file.read_text()) if event["ph"] == "i"]
    assert (mark["name"], mark["pid"], mark["tid"], mark["args"]["reason"]) == ("teacher_lost", 2, 0, "killed")
    assert scene.events == ["teacher_lost"]
