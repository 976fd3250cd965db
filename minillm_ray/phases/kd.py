"""Word-level distillation: at each token of the data's own responses, forward KL to the teacher and cross-entropy.

    pairs -> teacher replicas (hidden states, a batch ahead) -> learner: (1 - kd_ratio) nll + kd_ratio KL(p || q)

Source: the KD baseline of MiniLLM (arXiv 2306.08543), kd_ratio 0.5. The full vocabulary enters, in the one pass of
minillm_ray.objective.text: for the learner a pair is plain text whose prompt is not trained.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray

from minillm_ray.checkpoint.files import FileRecord
from minillm_ray.config.phases import KdPhase
from minillm_ray.data import SupervisedSet
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.learner.actor import LostInputs
from minillm_ray.learner.client import written_files
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.assembly import assembled
from minillm_ray.phases.epoch_checkpoints import EpochCheckpoints
from minillm_ray.phases.epochs import epoch_batches, train_epochs
from minillm_ray.phases.roles import (
    PromptReferences,
    RunParts,
    learner_launcher,
    rollout_launcher,
    schedule,
    teacher_launcher,
)
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.sft import training_pairs
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.responses import Response
from minillm_ray.telemetry.reductions import Mean

_BATCHES_AHEAD = 2
"""That the teacher scores while the learner trains: enough to keep it busy, and few hidden states to hold."""


def run_kd(context: RunContext, phase: KdPhase, models: Models, *, name: str) -> Models:
    """Train the student. Returns the pair with the best checkpoint in its place.

    Learner ranks that are lost come back, as in the MiniLLM phase, and go on from the newest checkpoint.
    """
    config, inputs = context.config, context.inputs
    train = training_pairs(context, phase.train_rows, name=name)
    epochs = epoch_batches(phase, len(train), seed=config.seed)
    settings = ObjectiveSettings(
        alpha=0.0, text_kd_ratio=phase.kd_ratio, logits_memory_mb=config.objective.logits_memory_mb
    )
    parts = RunParts(config, context.cluster, inputs)
    no_prompts = PromptReferences(None, None)
    launchers = {
        "rollout": rollout_launcher(parts, model=models.student, prompts=no_prompts, settings=settings),
        "teacher": teacher_launcher(parts, model=models.teacher),
        "learner": learner_launcher(
            parts,
            student=models.student,
            teacher=models.teacher,
            settings=settings,
            schedule=schedule(config, phase, num_steps=sum(map(len, epochs))),
            in_turn=False,
        ),
    }
    batches = [rows for of_epoch in epochs for rows in of_epoch]
    held_out = inputs.pairs(inputs.held_out)
    checkpoints = EpochCheckpoints(context, name=name)
    with assembled(context, launchers) as (crew, _):
        standing = checkpoints.newest()

        def go_back() -> None:
            nonlocal standing
            standing = checkpoints.newest()
            crew.learner.restore_from = standing.restore_from

        crew.learner.on_lost = go_back
        crew.teacher.scale(config.teacher.replicas)
        crew.learner.start(config.learner.ranks, restore_from=standing.restore_from)
        while True:
            crew.turn_until(lambda: crew.learner.learner is not None)
            imitation = Imitation(
                crew, train, held_out, batches[standing.steps :], validation_batch=config.evaluation.batch_size
            )
            try:
                best = train_epochs(
                    context, phase, imitation, train, name=name, checkpoints=checkpoints, standing=standing
                )
                return replace(models, student=str(best))
            except LearnerFell:
                context.console.message(f"{name}: the learner comes back in the state after step {standing.steps}")


class LearnerFell(Exception):
    """The learner that was trained is gone, and its steps since the newest checkpoint with it."""


class Imitation:
    """An EpochTrainer on pairs that the teacher has scored, for as long as the learner lives that there is now.

    batches: the rows of every step to come, in order. Whatever needs the learner raises LearnerFell once it is gone.
    """

    def __init__(
        self,
        crew: Crew,
        train: SupervisedSet,
        validation: SupervisedSet,
        batches: Sequence[Sequence[int]],
        *,
        validation_batch: int,
    ) -> None:
        self._crew, self._train, self._validation = crew, train, validation
        self._validation_batch = validation_batch
        self._to_come = iter(batches)
        self._ahead: deque[_Batch] = deque()
        self._learner = crew.learner.learner
        crew.responses.on_scored, crew.responses.on_lost = _scored, self._lost

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]:
        """One optimizer step on the next of the batches, which `rows` must be."""
        self._look_ahead()
        batch = self._ahead.popleft()
        if batch.rows != list(rows):
            raise ValueError(f"a step on rows {list(rows)}; expected the next batch, {batch.rows}")
        self._look_ahead()
        reports = self._ask(batch, lambda learner, *scored: learner.step([], [], *scored), "a step on pairs")
        numbers = finish_step(combine_step([report.metrics for report in reports]))
        return numbers["objective/loss/text"], reports[0].outcome

    def validation_loss(self) -> float:
        """The same loss over the held-out pairs, a batch at a time: no more of their hidden states are held."""
        parts: list[Mean] = []
        size = self._validation_batch
        for start in range(0, len(self._validation), size):
            rows = range(start, min(start + size, len(self._validation)))
            batch = self._ordered(self._validation, rows)
            parts += self._ask(batch, lambda learner, *scored: learner.text_loss(*scored), "the validation loss")
        return Mean(sum(part.sum for part in parts), sum(part.count for part in parts)).value

    def save(self, folder: Path) -> None:
        """The student in Hugging Face format."""
        self._ask_learner(lambda learner: learner.save(folder), "saving the model")

    def snapshot(self, folder: Path) -> None:
        """Copy the learner's state and begin to write it below `folder`."""
        self._ask_learner(lambda learner: learner.snapshot(folder), "copying its state")

    def written(self) -> list[FileRecord]:
        """The files of the last snapshot, once they are on disk. Raises CheckpointError where they are not."""
        return written_files(self._ask_learner(lambda learner: learner.written(), "writing its state"))

    def _look_ahead(self) -> None:
        while len(self._ahead) < _BATCHES_AHEAD and (rows := next(self._to_come, None)) is not None:
            self._ahead.append(self._ordered(self._train, rows))

    def _ordered(self, pairs: SupervisedSet, rows: Sequence[int]) -> "_Batch":
        batch = _Batch(pairs, list(rows))
        for row in rows:
            self._order(batch, row)
        return batch

    def _order(self, batch: "_Batch", row: int) -> None:
        trajectory = ray.put(as_trajectory(row, *batch.pairs.example(row)))
        self._crew.responses.score((batch, row), Task("pairs", row, 0, mixed=False), trajectory)

    def _lost(self, response: Response) -> None:
        self._order(*cast(tuple[_Batch, int], response.key))

    def _ask(self, batch: "_Batch", call: Callable[..., list[Any]], work: str) -> list[Any]:
        """What every rank answers, once the batch is scored; scored again where some of it went with a node."""
        while True:
            self._crew.turn_until(lambda: len(batch.scored) == len(batch.rows))
            scored = [batch.scored[row] for row in batch.rows]
            references = [response.trajectory for response in scored], [response.payload for response in scored]
            answers = self._ask_learner(lambda learner: call(learner, *references), work)  # noqa: B023
            if not any(isinstance(answer, LostInputs) for answer in answers):
                return answers
            batch.scored.clear()
            for row in batch.rows:
                self._order(batch, row)

    def _ask_learner(self, call: Callable[[Any], list[Any]], work: str) -> list[Any]:
        """What every rank of the learner answers that there was at the beginning."""

        def asked(learner: Any) -> list[Any]:
            if learner is not self._learner:
                raise LearnerFell
            return call(learner)

        return self._crew.ask_learner(asked, work)


@dataclass(eq=False)
class _Batch:
    """Rows of a set, and those of them that are scored."""

    pairs: SupervisedSet
    rows: list[int]
    scored: dict[int, Response] = field(default_factory=dict)


def as_trajectory(row: int, token_ids: np.ndarray, prompt_length: int) -> Trajectory:
    """A pair as if somebody had drawn its response: the teacher and the learner treat it like one."""
    num_tokens = len(token_ids) - prompt_length
    return Trajectory(
        prompt_index=row,
        prompt_ids=token_ids[:prompt_length],
        response_ids=token_ids[prompt_length:],
        sampler_logprob=np.zeros(num_tokens, np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(num_tokens, np.int32),
        truncated=False,
    )


def _scored(response: Response) -> None:
    batch, row = cast(tuple[_Batch, int], response.key)
    batch.scored[row] = response
