"""What the driver sees of its crew at each turn: the source of the idle times, the trace and the status."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minillm_ray.phases.status import ReplicaStatus, StatusFile
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.replicas import Member, State
from minillm_ray.telemetry.activity import Activity, Observation, Posture
from minillm_ray.telemetry.trace import TraceWriter

_NOTE_SECONDS = 0.05
"""How exactly postures are known: a crew turns up to a thousand times a second."""
_STATUS_SECONDS = 1.0
_THERE = (State.SERVING, State.DRAINING)


class CrewWatch:
    """Called at each turn of a crew. take: see Activity. write_event: where events go, those of a replica also here."""

    def __init__(
        self,
        trace_file: Path,
        status: StatusFile,
        *,
        write_event: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trace = TraceWriter(trace_file, epoch=time.time() - clock())
        self._status, self._write_event, self._clock = status, write_event, clock
        self._activity = Activity(clock, self._trace.slice)
        self.take = self._activity.take
        self._learner_work: str | None = None
        self._noted_at = self._told_at = float("-inf")

    def __call__(self, crew: Crew) -> None:
        """Note what has changed."""
        now = self._clock()
        if crew.learner.work_under_way != self._learner_work or now - self._noted_at >= _NOTE_SECONDS:
            self._learner_work = crew.learner.work_under_way
            self._noted_at = now
            self._activity.note(_observations(crew))
        if now - self._told_at >= _STATUS_SECONDS:
            self._told_at = now
            self._status.crew(crew.version, _replicas(crew))

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of a replica set: `rollout_lost` and the replica's number among the fields."""
        self._write_event(kind, fields)
        role = kind.partition("_")[0]
        self._trace.instant(role, fields["number"], kind, fields, at=self._clock())

    def close(self) -> None:
        """The crew is gone."""
        self._activity.note({})
        self._trace.close()
        self._status.crew(0, {})


def _observations(crew: Crew) -> dict[Any, Observation]:
    seen: dict[Any, Observation] = {}
    for member in crew.rollout.members:
        if member.state in _THERE:
            posture, work = _rollout_posture(crew, member)
            seen[member] = _of_engine(member, posture, work)
    for member in crew.teacher.members:
        if member.state in _THERE:
            seen[member] = _of_engine(member, Posture.IN_HAND if member.load else Posture.AWAITS_INPUT)
    if crew.learner.learner is not None:
        at_work = crew.learner.work_under_way
        posture = Posture.AWAITS_INPUT if at_work is None else Posture.IN_HAND
        seen[crew.learner.learner] = Observation("learner", 0, posture, at_work or "")
    return seen


def _rollout_posture(crew: Crew, member: Member) -> tuple[Posture, str]:
    if member.pulling:
        return Posture.AWAITS_WEIGHTS, "pulling weights"
    if member.load:
        return Posture.IN_HAND, ""
    if crew.awaits_weights(member):
        return Posture.AWAITS_WEIGHTS, ""
    return Posture.AWAITS_INPUT, ""


def _of_engine(member: Member, posture: Posture, work: str = "") -> Observation:
    return Observation(member.role, member.number, posture, work, member.busy_seconds, member.beat_at)


def _replicas(crew: Crew) -> dict[str, list[ReplicaStatus]]:
    return {
        replicas.role: [
            ReplicaStatus(member.number, member.state.value, member.version, member.load) for member in replicas.members
        ]
        for replicas in (crew.rollout, crew.teacher, crew.ranks)
    }
