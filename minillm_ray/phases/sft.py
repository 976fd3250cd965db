"""Supervised fine-tuning of the teacher or the student on the data's own responses."""

import time
from dataclasses import replace
from pathlib import Path

import ray
from ray import ObjectRef

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SeqKdPhase, SftPhase
from minillm_ray.data import SupervisedSet
from minillm_ray.phases.epoch_checkpoints import EpochCheckpoints
from minillm_ray.phases.epochs import epoch_batches, train_epochs
from minillm_ray.phases.roles import RunParts, schedule, supervised_group
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.remote import WorkFailed

_HOUR_SECONDS = 3600.0


def run_sft(context: RunContext, phase: SftPhase, models: Models, *, name: str) -> Models:
    """Train `phase.model`. Returns the pair with the best checkpoint in its place."""
    train = training_pairs(context, phase.train_rows, name=name)
    model = models.teacher if phase.model == "teacher" else models.student
    best = fine_tune(context, phase, train, model=model, name=name)
    return replace(models, **{phase.model: str(best)})


def training_pairs(context: RunContext, num_rows: int | None, *, name: str) -> SupervisedSet:
    """The first `num_rows` training rows, None for all, with their own responses; what was cut is said."""
    config, inputs = context.config, context.inputs
    train = inputs.pairs(inputs.train[:num_rows])
    if train.num_cut or train.num_truncated:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} prompts were cut to data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}, {train.num_truncated} responses to rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}"
        )
    return train


def fine_tune(
    context: RunContext, phase: SftPhase | SeqKdPhase, train: SupervisedSet, *, model: str, name: str
) -> Path:
    """Cross-entropy on `train`. Returns where the weights are whose loss on the held-out pairs was lowest.

    A group that loses a rank is started again from the newest checkpoint; RunError once that happened too often.
    """
    checkpoints = EpochCheckpoints(context, name=name)
    pairs, validation = ray.put(train), ray.put(context.inputs.pairs(context.inputs.held_out))
    losses: list[float] = []
    while True:
        try:
            return _train(context, phase, train, (pairs, validation), model=model, name=name, checkpoints=checkpoints)
        except WorkFailed as error:
            now = time.monotonic()
            losses = [*(at for at in losses if now - at < _HOUR_SECONDS), now]
            context.events.write("learner_lost", {"reason": str(error)})
            if len(losses) > context.config.pipeline.max_restarts_per_hour:
                raise RunError(f"{name}: the learner was lost {len(losses)} times within an hour: {error}") from error
            context.console.message(f"{name}: the learner is lost and is replaced: {error}")


def _train(
    context: RunContext,
    phase: SftPhase | SeqKdPhase,
    train: SupervisedSet,
    references: tuple[ObjectRef, ObjectRef],
    *,
    model: str,
    name: str,
    checkpoints: EpochCheckpoints,
) -> Path:
    """One group of ranks, from the newest checkpoint to the end. references: of `train` and of the held-out pairs."""
    config = context.config
    pairs, validation = references
    standing = checkpoints.newest()
    with supervised_group(
        RunParts(config, context.cluster, context.inputs),
        name=name,
        model=model,
        schedule=schedule(config, phase, num_steps=sum(map(len, epoch_batches(phase, len(train), seed=config.seed)))),
        train=pairs,
        validation=validation,
        message=context.console.message,
    ) as group:
        group.join(startup_timeout_seconds=config.pipeline.startup_timeout_seconds)
        if standing.restore_from is not None:
            group.load(standing.restore_from)
        return train_epochs(context, phase, group, train, name=name, checkpoints=checkpoints, standing=standing)
