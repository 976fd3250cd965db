"""The roles in turn, so that every response is drawn with the weights that it trains.

    ledger -> rollout -> teacher -> learner: minibatch after minibatch -> publish -> every rollout replica pulls

Invariant: no round begins before every rollout replica holds the weights that the last one made.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from minillm_ray.pipeline.ledger import Assignment, Ledger
from minillm_ray.pipeline.protocols import Learner, PlainText, Reference, Rollout, Teacher


@dataclass(frozen=True)
class RoundPlan:
    """Sizes of one round, over all replicas and ranks; rollouts is a multiple of minibatch."""

    rollouts: int
    minibatch: int
    inner_epochs: int


@dataclass(frozen=True)
class RoundTimes:
    """What a round took, in seconds, and the bytes that went from the teacher to the learner.

    weight_seconds: from the last optimizer step to the last replica's pull.
    """

    generate_seconds: float
    score_seconds: float
    weight_seconds: float
    payload_bytes: int


@dataclass(frozen=True)
class PipelineStep:
    """One optimizer step. step: from 1. reports: one a rank. round: with the last step of each round, else None."""

    step: int
    reports: list[Any]
    step_seconds: float
    round: RoundTimes | None


class SynchronousPipeline:
    """Runs rounds until `num_steps` optimizer steps are done."""

    def __init__(
        self,
        rollout: Rollout,
        teacher: Teacher,
        learner: Learner,
        ledger: Ledger,
        plan: RoundPlan,
        *,
        plain_text: PlainText | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rollout, self._teacher, self._learner = rollout, teacher, learner
        self._ledger = ledger
        self._plan = plan
        self._plain_text = plain_text
        self._clock = clock
        self.version = 0

    def synchronise(self) -> float:
        """Publish the learner's weights as the next version; every rollout replica pulls it. Returns the seconds."""
        start = self._clock()
        self.version += 1
        manifest, buffers = self._learner.publish(self.version)
        self._rollout.pull(manifest, buffers, self.version)
        return self._clock() - start

    def steps(self, num_steps: int) -> Iterator[PipelineStep]:
        """The optimizer steps of as many whole rounds as `num_steps` needs; the weights are pulled after each round."""
        self.synchronise()
        done = 0
        while done < num_steps:
            began = self._clock()
            trajectories = self._generate(self._ledger.take(self._plan.rollouts))
            generated = self._clock()
            payloads, payload_bytes = self._teacher.score(trajectories)
            scored = self._clock()
            minibatches = list(self._minibatches())
            for number, minibatch in enumerate(minibatches, start=1):
                start = self._clock()
                texts, text_payloads = self._plain_text.next() if self._plain_text else ([], [])
                reports = self._learner.step(trajectories[minibatch], payloads[minibatch], texts, text_payloads)
                seconds = self._clock() - start
                times = None
                if number == len(minibatches):
                    times = RoundTimes(generated - began, scored - generated, self.synchronise(), payload_bytes)
                done += 1
                yield PipelineStep(done, reports, seconds, times)

    def _generate(self, assignments: list[Assignment]) -> list[Reference]:
        references: list[Reference] = []
        for epoch, group in groupby(assignments, key=lambda assignment: assignment.epoch):
            references += self._rollout.generate("train", [a.prompt_index for a in group], draw=epoch)
        return references

    def _minibatches(self) -> Iterator[slice]:
        for _ in range(self._plan.inner_epochs):
            for start in range(0, self._plan.rollouts, self._plan.minibatch):
                yield slice(start, start + self._plan.minibatch)
