"""All replicas of a run at work: one loop turns them, keeps the samplers' weights current and hears what is asked."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from minillm_ray.pipeline.learner_ranks import LearnerRanks
from minillm_ray.pipeline.protocols import Publication, Reference, RolloutReplica, Task
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Member, ReplicaSet, State
from minillm_ray.pipeline.responses import Response, Responses, least_loaded

_TURN_SECONDS = 0.25


class Crew:
    """Rollout and teacher replicas and learner ranks, and the responses that they have in hand.

    requests: gives the wanted number of replicas of a role whenever somebody has asked for another, else nothing.
    """

    def __init__(
        self,
        reactor: Reactor,
        rollout: ReplicaSet,
        teacher: ReplicaSet,
        ranks: ReplicaSet,
        learner: LearnerRanks,
        *,
        call_seconds: float,
        requests: Callable[[], Mapping[str, int]] = dict,
        note_activity: Callable[["Crew"], None] = lambda crew: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rollout, self.teacher, self.ranks, self.learner = rollout, teacher, ranks, learner
        self.responses = Responses(reactor, rollout, teacher, call_seconds=call_seconds)
        self._reactor = reactor
        self.call_seconds = call_seconds
        self._requests = requests
        self._note_activity = note_activity
        self._clock = clock
        self._publication: Publication | None = None
        self._num_publishing = 0
        self.pull_seconds = 0.0
        """From the last publication's beginning to the last replica's pull of it."""
        self.awaits_weights: Callable[[Member], bool] = lambda member: False
        """Whether a rollout replica is given nothing because its weights are too old."""
        self._publish_began = 0.0
        rollout.on_ready = self._pull
        rollout.on_lost = self.responses.rollout_lost
        teacher.on_lost = self.responses.teacher_lost

    def turn(self) -> None:
        """One round of everything that is due; waits a moment for a call to end."""
        for role, count in self._requests().items():
            {"rollout": self.rollout, "teacher": self.teacher}[role].scale(count)
        for replicas in (self.rollout, self.teacher, self.ranks):
            replicas.turn()
        self.responses.turn()
        self._note_activity(self)
        self._reactor.turn(_TURN_SECONDS)

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Turn until it holds."""
        while not condition():
            self.turn()

    def expect(
        self, reference: Reference, *, done: Callable[[Any], None], failed: Callable[[Exception], None], work: str
    ) -> None:
        """Wait for a call that belongs to no replica."""
        self._reactor.expect(reference, seconds=self.call_seconds, done=done, failed=failed, work=work)

    def publish(self, version: int) -> None:
        """The learner's weights become `version`; every rollout replica pulls it between two steps of its engine."""
        self._num_publishing += 1
        self._publish_began = self._clock()
        manifest, buffers, references = self.learner.learner.publish(version)
        publication = Publication(version, manifest, buffers)

        def published(_: list[Any]) -> None:
            self._num_publishing -= 1
            self._publication = publication
            for member in self.rollout.serving:
                self._pull(member)

        self.learner.call_all(
            references, seconds=self.call_seconds, done=published, work=f"publishing weight version {version}"
        )

    def forget_weights(self) -> None:
        """What was published last is no longer true: replicas that start wait for the next."""
        self._num_publishing = 0
        self._publication = None
        for member in self.rollout.members:
            member.version = 0

    @property
    def version(self) -> int:
        """Of the weights that were published last; 0 before the first."""
        return 0 if self._publication is None else self._publication.version

    @property
    def up_to_date(self) -> list[Member]:
        """Rollout replicas that hold the newest weights and are not changing them."""
        newest = None if self._num_publishing or self._publication is None else self._publication.version
        return [member for member in self.rollout.serving if not member.pulling and member.version == newest]

    @property
    def fresh(self) -> list[Member]:
        """Rollout replicas that hold some published version and are not changing it."""
        return [member for member in self.rollout.serving if member.version and not member.pulling]

    @property
    def all_pulled(self) -> bool:
        """There is a rollout replica, and every one that serves holds the newest weights."""
        return bool(self.rollout.serving) and len(self.up_to_date) == len(self.rollout.serving)

    def ask_learner(self, call: Callable[[Any], list[Reference]], work: str) -> list[Any]:
        """What every rank answers, asked again where the group fell meanwhile and came back."""
        answers: list[list[Any]] = []
        while not answers:
            self.turn_until(lambda: self.learner.learner is not None)
            asked = self.learner.learner
            self.learner.call_all(call(asked), seconds=self.call_seconds, done=answers.append, work=work)
            self.turn_until(lambda: bool(answers) or self.learner.learner is not asked)  # noqa: B023
        return answers[0]

    def stop(self) -> None:
        """End every actor."""
        for replicas in (self.rollout, self.teacher, self.ranks):
            replicas.stop()

    def collect(self, tasks: Sequence[Task]) -> list[Response]:
        """Draw and score these unmixed tasks, whatever dies meanwhile; in order. Nothing else may be under way."""
        collected: dict[int, Response] = {}
        waiting = dict(enumerate(tasks))

        def scored(response: Response) -> None:
            collected[cast(int, response.key)] = response

        def lost(response: Response) -> None:
            waiting[cast(int, response.key)] = response.task

        self.responses.on_scored, self.responses.on_lost = scored, lost
        while len(collected) < len(tasks):
            if self.all_pulled:
                self._start_evenly(waiting)
            self.turn()
        return [collected[number] for number in range(len(tasks))]

    def _start_evenly(self, waiting: dict[int, Task]) -> None:
        for number in sorted(waiting):
            self.responses.start(number, waiting.pop(number), least_loaded(self.up_to_date))

    def _pull(self, member: Member) -> None:
        publication = self._publication
        if publication is None or member.pulling or member.state is not State.SERVING:
            return
        if member.version == publication.version:
            return
        member.pulling = True

        def pulled(_: int) -> None:
            member.pulling = False
            if self._publication is publication:
                member.version = publication.version
                self.pull_seconds = self._clock() - self._publish_began
            else:  # newer weights came meanwhile, or these are no longer true
                member.version = 0
                self._pull(member)

        self.rollout.call(
            member,
            cast(RolloutReplica, member.client).pull(publication),
            seconds=self.call_seconds,
            done=pulled,
            work=f"pulling weight version {publication.version}",
        )
