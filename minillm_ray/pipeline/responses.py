"""The life of a response: drawn by a rollout replica, scored by a teacher replica, each as soon as it can be.

    start --> drawing --> drawn --> scoring --> scored
                 |                    |
                lost             drawn again, and scored by another replica

What a dead replica had in hand is lost or scored anew; nothing waits for a batch.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from minillm_ray.pipeline.protocols import Reference, RolloutReplica, Task, TeacherReplica
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Member, ReplicaSet
from minillm_ray.remote import PeerFailed, PeerUnavailable, is_lost_object


@dataclass(eq=False)
class Response:
    """One response on its way. key: the caller's; drawn, scored: the small reports of the two calls.

    rollout: who draws it, None for one that is there already. The times are the clock's.
    """

    key: Hashable
    task: Task
    session: str
    rollout: Member | None
    teacher: Member | None
    trajectory: Reference = None
    payload: Reference = None
    drawn: Any = None
    scored: Any = None
    began_at: float = 0.0
    drawn_at: float = 0.0
    scored_at: float = 0.0


class Responses:
    """on_scored: a response is there. on_lost: it is not, and must be started again."""

    def __init__(self, reactor: Reactor, rollout: ReplicaSet, teacher: ReplicaSet, *, call_seconds: float) -> None:
        self._reactor, self._rollout, self._teacher = reactor, rollout, teacher
        self._call_seconds = call_seconds
        self._drawing: dict[Response, Reference] = {}
        self._unscored: list[Response] = []
        self._scoring: dict[Response, Reference] = {}
        self._numbers = itertools.count()
        self.on_scored: Callable[[Response], None] = lambda response: None
        self.on_lost: Callable[[Response], None] = lambda response: None

    @property
    def num_under_way(self) -> int:
        return len(self._drawing) + len(self._unscored) + len(self._scoring)

    def can_start(self, *, mixed: bool) -> bool:
        """A mixed response needs a teacher from its first token on."""
        return not mixed or bool(self._teacher.serving)

    def start(self, key: Hashable, task: Task, member: Member, *, together: tuple[str, int, int] | None = None) -> None:
        """Let `member` draw it. together: see RolloutReplica."""
        teacher = self._least_loaded_teacher() if task.mixed else None
        response = Response(key, task, f"response-{next(self._numbers)}", member, teacher)
        response.began_at = self._reactor.now()
        client = cast(RolloutReplica, member.client)
        report, response.trajectory = client.respond(
            task,
            teacher=None if teacher is None else cast(TeacherReplica, teacher.client),
            session=response.session,
            together=together,
        )
        self._drawing[response] = report
        member.load += 1
        if teacher is not None:
            teacher.load += 1
        self._reactor.expect(
            report,
            seconds=self._call_seconds,
            done=lambda value: self._drawn(response, value),
            failed=lambda error: self._not_drawn(response, error),
            work=f"{member.name}: drawing a response",
        )

    def score(self, key: Hashable, task: Task, trajectory: Reference) -> None:
        """Have a trajectory scored that is there already."""
        response = Response(key, task, f"response-{next(self._numbers)}", None, None, trajectory)
        response.began_at = response.drawn_at = self._reactor.now()
        self._unscored.append(response)

    def turn(self) -> None:
        """Hand what is drawn to the teachers: at once where one serves, later where none does."""
        while self._unscored and self._teacher.serving:
            self._score(self._unscored.pop(0))

    def rollout_lost(self, member: Member) -> None:
        """What it was drawing is lost."""
        for response in [response for response in self._drawing if response.rollout is member]:
            self._stop_drawing(response)
            self.on_lost(response)

    def teacher_lost(self, member: Member) -> None:
        """What it was scoring is scored by another; what was being drawn with it fails by itself."""
        for response in [response for response in self._scoring if response.teacher is member]:
            self._reactor.forget([self._scoring.pop(response)])
            self._unscored.append(response)

    def abandon(self) -> None:
        """Forget all of them; the rollout replicas stop drawing."""
        self._reactor.forget([*self._drawing.values(), *self._scoring.values()])
        for member in self._rollout.serving:
            if sessions := [response.session for response in self._drawing if response.rollout is member]:
                cast(RolloutReplica, member.client).abandon(sessions)
        for response in list(self._drawing):
            self._stop_drawing(response)
        for response in list(self._scoring):
            self._stop_scoring(response)
        self._unscored.clear()

    def _drawn(self, response: Response, report: Any) -> None:
        self._stop_drawing(response, keep_session=True)
        response.drawn = report
        response.drawn_at = self._reactor.now()
        self._unscored.append(response)
        self.turn()

    def _not_drawn(self, response: Response, error: Exception) -> None:
        if isinstance(error, PeerUnavailable):
            self._stop_drawing(response)
            self.on_lost(response)
            if isinstance(error, PeerFailed) and response.teacher in self._teacher.members:
                self._teacher.failed(cast(Member, response.teacher), error, "judging a proposal")
        else:
            self._rollout.failed(cast(Member, response.rollout), error, "drawing a response")

    def _stop_drawing(self, response: Response, *, keep_session: bool = False) -> None:
        self._reactor.forget([self._drawing.pop(response)])
        cast(Member, response.rollout).load -= 1
        if response.teacher is not None:
            response.teacher.load -= 1
            if not keep_session and response.teacher in self._teacher.serving:
                cast(TeacherReplica, response.teacher.client).forget(response.session)

    def _score(self, response: Response) -> None:
        session = response.session if response.teacher in self._teacher.serving else None
        if session is None:
            response.teacher = self._least_loaded_teacher()
        member = cast(Member, response.teacher)
        report, response.payload = cast(TeacherReplica, member.client).score(
            response.trajectory, session, exact=response.task.split != "train"
        )
        self._scoring[response] = report
        member.load += 1
        self._reactor.expect(
            report,
            seconds=self._call_seconds,
            done=lambda value: self._scored(response, value),
            failed=lambda error: self._not_scored(response, error),
            work=f"{member.name}: scoring a response",
        )

    def _scored(self, response: Response, report: Any) -> None:
        self._stop_scoring(response)
        response.scored = report
        response.scored_at = self._reactor.now()
        self.on_scored(response)

    def _not_scored(self, response: Response, error: Exception) -> None:
        if is_lost_object(error):
            self._stop_scoring(response)
            self.on_lost(response)
        else:
            self._teacher.failed(cast(Member, response.teacher), error, "scoring a response")

    def _stop_scoring(self, response: Response) -> None:
        self._reactor.forget([self._scoring.pop(response)])
        cast(Member, response.teacher).load -= 1

    def _least_loaded_teacher(self) -> Member:
        return least_loaded(self._teacher.serving)


def least_loaded(members: Sequence[Member]) -> Member:
    """The one with the fewest responses in hand; among equals the first."""
    return min(members, key=lambda member: member.load)
