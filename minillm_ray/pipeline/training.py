"""MiniLLM's rounds: prompts are admitted, responses trained, weights published, as soon as each can be.

    admitted --> drawn and scored --> a round's batch --> minibatch after minibatch --> publish --> replicas pull
        ^                                                                                              |
        +------------------------------ free places (pipeline/admission.py) --------------------------+

With max_staleness 0 the roles work in turn: a round's prompts are admitted in one go once every rollout replica holds
the weights that the last round made. With more, all of them work at the same time.

A round is trained whole or not at all: a learner that dies goes back to the last checkpoint, and the ledger with it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from minillm_ray.pipeline.admission import Admission, Ticket
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.plain_text import TextOrders
from minillm_ray.pipeline.protocols import PlainText, Reference, Task
from minillm_ray.pipeline.replicas import Member
from minillm_ray.pipeline.responses import Response, least_loaded
from minillm_ray.remote import even_shares


@dataclass(frozen=True)
class RoundPlan:
    """Sizes over all replicas and ranks; rollouts is a multiple of minibatch. rounds: in the whole phase."""

    rollouts: int
    minibatch: int
    inner_epochs: int
    rounds: int
    max_staleness: int
    mixed: bool

    @property
    def steps_a_round(self) -> int:
        return self.rollouts // self.minibatch * self.inner_epochs


@dataclass(frozen=True)
class Round:
    """A round that is over. responses: in the order of training; version: of the weights that it began with.

    seconds: since the round before it was over; pull_seconds: what it took the replicas to hold that version.
    """

    responses: Sequence[Response]
    version: int
    seconds: float
    pull_seconds: float


@dataclass(frozen=True)
class Step:
    """One optimizer step. step: from 1 in the phase; reports: one a rank; round: with the last step of each round.

    is_on_policy: every response was drawn with the very weights that the step began with.
    """

    step: int
    reports: list[Any]
    step_seconds: float
    is_on_policy: bool
    round: Round | None


@dataclass(frozen=True)
class Untrained:
    """A finished response. place: of its assignment; version: of the weights that it started with."""

    place: int
    version: int
    trajectory: Reference


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two rounds. ledger: its state; all that is out is untrained in it.

    responses: those among the untrained that are finished; num_texts: chunks of plain text that were trained.
    """

    rounds: int
    ledger: dict[str, Any]
    responses: Sequence[Untrained] = ()
    num_texts: int = 0


class Checkpoints(Protocol):
    """Where a run's state is kept. save begins; it is_writing until what was begun is on disk or has failed."""

    @property
    def is_writing(self) -> bool: ...
    def was_tried(self, step: int) -> bool: ...
    def due(self, step: int) -> bool: ...
    def save(self, step: int, progress: Progress) -> None: ...
    def go_back(self) -> tuple[Progress, Path | None]: ...


class Training:
    """One MiniLLM phase on a crew. on_step: hears of every optimizer step; its errors end the run.

    stop_asked: whether somebody wants the run to end; it then ends after the round in progress, with a checkpoint.
    """

    def __init__(
        self,
        crew: Crew,
        ledger: Ledger,
        plan: RoundPlan,
        progress: Progress,
        checkpoints: Checkpoints,
        *,
        on_step: Callable[[Step], None],
        stop_asked: Callable[[], bool] = lambda: False,
        plain_text: PlainText | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._crew, self._ledger, self._plan = crew, ledger, plan
        self._checkpoints = checkpoints
        self._on_step, self._stop_asked = on_step, stop_asked
        self._texts = TextOrders(plain_text, crew.responses, steps_a_round=plan.steps_a_round)
        self._clock = clock
        self._began = clock()
        self._num_groups = 0
        self._responses: dict[Ticket, Response] = {}
        self._batch: list[Ticket] | None = None
        self._minibatches: Iterator[tuple[int, slice]] = iter(())
        self._adopt(progress)

    def run(self) -> bool:
        """Until every round is trained, published and on disk; or stopped: then False, with a checkpoint on disk."""
        crew = self._crew
        crew.responses.on_scored, crew.responses.on_lost = self._scored, self._lost
        crew.learner.on_lost, crew.learner.on_ready = self._go_back, self._publish
        crew.awaits_weights = self._awaits_weights
        self._began = self._clock()
        try:
            self._take_up()
            crew.turn_until(self._advance)
        finally:
            crew.awaits_weights = lambda member: False
            crew.responses.abandon()
        return self._admission.rounds_left == 0

    @property
    def progress(self) -> Progress:
        """At this moment; meaningful between two rounds."""
        finished = [
            Untrained(ticket.assignment.place, ticket.version, response.trajectory)
            for ticket, response in self._responses.items()
        ]
        return Progress(self._admission.version - 1, self._ledger.state(), finished, self._texts.num_taken)

    def _advance(self) -> bool:
        """Start whatever can start. True once nothing is left to do."""
        stop = self._stop_asked()
        if not stop:
            self._admit()
        if self._batch is not None:
            return False
        if not self._admission.rounds_left:
            return self._crew.learner.learner is not None and self._crew.all_pulled and self._checkpointed()
        if stop:
            # Without a learner nothing is lost: it was about to go back to the last checkpoint.
            return self._crew.learner.learner is None or self._checkpointed()
        texts_are_there = self._texts.order()
        if self._crew.learner.learner is not None and texts_are_there:
            self._batch = self._admission.begin_round()
            if self._batch is not None:
                self._minibatches = self._cut()
                self._next_minibatch()
        return False

    def _checkpointed(self) -> bool:
        """The state between two rounds is on disk, or was tried and could not be written."""
        if not self._checkpoints.was_tried(self._num_steps) and not self._checkpoints.is_writing:
            self._checkpoints.save(self._num_steps, self.progress)
        return not self._checkpoints.is_writing

    def _admit(self) -> None:
        if not self._crew.responses.can_start(mixed=self._plan.mixed):
            return
        if self._plan.max_staleness == 0:
            self._admit_round()
            return
        fresh = self._crew.fresh
        while self._admit_one(fresh):
            pass

    def _admit_one(self, fresh: Sequence[Member]) -> bool:
        """Whether there was a place, and somebody to take it.

        A replica takes no more than its even share of all that is in hand and free: the rest waits for those that are
        just pulling new weights, or else the first to have pulled would get everything.
        """
        free = {version: self._admission.free(version) for version in {member.version for member in fresh}}
        open_to = [member for member in fresh if free[member.version]]
        if not open_to:
            return False
        member = least_loaded(open_to)
        serving = self._crew.rollout.serving
        in_hand = sum(other.load for other in serving)
        if member.load * len(serving) >= in_hand + free[member.version]:
            return False
        self._start(member, 1)
        return True

    def _admit_round(self) -> None:
        """The whole round at once, the same share to each replica, so that the same batches form each time."""
        free = self._admission.free(self._admission.version)
        if free and self._crew.all_pulled:
            self._num_groups += 1
            members = self._crew.up_to_date
            for member, share in zip(members, even_shares(range(free), len(members)), strict=True):
                self._start(member, len(share))

    def _awaits_weights(self, member: Member) -> bool:
        """There are prompts, and none may be started with its weights; in turns, none before all have pulled."""
        has_place = self._admission.free(member.version) and (self._plan.max_staleness or self._crew.all_pulled)
        return not has_place and self._admission.free(self._admission.version + self._plan.max_staleness + 1) > 0

    def _start(self, member: Member, count: int) -> None:
        tickets = self._admission.admit(self._ledger.take(count), member.version)
        key = f"round-{self._admission.version}-{self._num_groups}"  # no other training of the phase has it
        for place, ticket in enumerate(tickets):
            group = (key, count, place) if self._plan.max_staleness == 0 else None
            self._crew.responses.start(ticket, self._task(ticket), member, together=group)

    def _task(self, ticket: Ticket) -> Task:
        return Task("train", ticket.assignment.prompt_index, ticket.assignment.epoch, self._plan.mixed)

    def _scored(self, response: Response) -> None:
        if isinstance(response.key, Ticket):
            self._responses[response.key] = response
            self._admission.scored(response.key)
        else:
            self._texts.scored(response)

    def _lost(self, response: Response) -> None:
        if isinstance(response.key, Ticket):
            self._admission.lost(response.key)
            self._ledger.give_back([response.key.assignment])
        else:
            self._texts.lost(response)

    def _cut(self) -> Iterator[tuple[int, slice]]:
        size = self._plan.minibatch
        starts = [start for _ in range(self._plan.inner_epochs) for start in range(0, self._plan.rollouts, size)]
        return iter([(number, slice(start, start + size)) for number, start in enumerate(starts)])

    def _next_minibatch(self) -> None:
        number, places = next(self._minibatches)
        minibatch = cast(list[Ticket], self._batch)[places]
        responses = [self._responses[ticket] for ticket in minibatch]
        began = self._clock()
        ranks = self._crew.learner
        references = ranks.learner.step(
            [response.trajectory for response in responses],
            [response.payload for response in responses],
            *self._texts.take(),
        )
        ranks.call_all(
            references,
            seconds=self._crew.call_seconds,
            done=lambda reports: self._stepped(number, minibatch, reports, self._clock() - began),
            work=f"optimizer step {self._num_steps + 1}",
        )

    def _stepped(self, number: int, minibatch: Sequence[Ticket], reports: list[Any], seconds: float) -> None:
        if getattr(reports[0], "num_lost", 0):
            places = sorted(place for report in reports for place in report.lost_places)
            self._without(number, [minibatch[place] for place in places])
            return
        self._num_steps += 1
        is_last = number + 1 == self._plan.steps_a_round
        self._on_step(
            Step(
                step=self._num_steps,
                reports=reports,
                step_seconds=seconds,
                is_on_policy=number == 0 and all(ticket.version == self._admission.version for ticket in minibatch),
                round=self._round() if is_last else None,
            )
        )
        if is_last:
            self._end_round()
        else:
            self._next_minibatch()

    def _without(self, number: int, lost: Sequence[Ticket]) -> None:
        """Responses went with a node. They are drawn again; a round that has begun to train cannot wait for them."""
        if number:
            self._crew.learner.restart("responses of the round in progress went with a node")
            return
        self._admission.give_up_round()
        for ticket in lost:
            self._lost(self._responses.pop(ticket))
        self._texts.give_back()
        self._batch = None

    def _round(self) -> Round:
        responses = [self._responses[ticket] for ticket in cast(list[Ticket], self._batch)]
        return Round(responses, self._admission.version, self._clock() - self._began, self._crew.pull_seconds)

    def _end_round(self) -> None:
        batch = cast(list[Ticket], self._batch)
        self._ledger.trained(ticket.assignment for ticket in batch)
        self._admission.trained()
        for ticket in batch:
            del self._responses[ticket]
        self._batch = None
        self._began = self._clock()
        self._publish()
        if self._checkpoints.due(self._num_steps) and not self._checkpoints.is_writing:
            self._checkpoints.save(self._num_steps, self.progress)

    def _publish(self) -> None:
        self._crew.publish(self._admission.version)

    def _adopt(self, progress: Progress) -> None:
        self._ledger.restore(progress.ledger)
        self._num_steps = progress.rounds * self._plan.steps_a_round
        self._texts.go_to(progress.num_texts)
        self._finished = progress.responses
        self._responses.clear()
        self._batch = None
        self._admission = Admission(
            round_size=self._plan.rollouts,
            max_staleness=self._plan.max_staleness,
            version=progress.rounds + 1,
            rounds=self._plan.rounds - progress.rounds,
        )

    def _take_up(self) -> None:
        """What the state that was adopted holds of finished responses is scored again; payloads are not kept.

        Where a resumed run has a lower max_staleness or fewer rollouts a round, some are too old for it: drawn anew.
        """
        for untrained in sorted(self._finished, key=lambda item: item.place):
            if not self._admission.free(untrained.version):
                continue
            [ticket] = self._admission.admit(self._ledger.take_places([untrained.place]), untrained.version)
            self._crew.responses.score(ticket, self._task(ticket), untrained.trajectory)
        self._finished = ()

    def _go_back(self) -> None:
        """The learner is lost: everything since the last checkpoint is undone."""
        self._crew.responses.abandon()
        self._crew.forget_weights()
        progress, self._crew.learner.restore_from = self._checkpoints.go_back()
        self._adopt(progress)
        self._take_up()
