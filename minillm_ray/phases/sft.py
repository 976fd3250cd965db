"""Supervised fine-tuning of the teacher or the student on the data's own responses."""

from dataclasses import replace
from pathlib import Path

import ray

from minillm_ray.config.phases import SeqKdPhase, SftPhase
from minillm_ray.data import SupervisedSet
from minillm_ray.phases.epochs import epoch_batches, train_epochs
from minillm_ray.phases.roles import RunParts, schedule, supervised_group
from minillm_ray.phases.run_context import Models, RunContext


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
    """Cross-entropy on `train`. Returns where the weights are whose loss on the held-out pairs was lowest."""
    config, inputs = context.config, context.inputs
    num_steps = sum(map(len, epoch_batches(phase, len(train), seed=config.seed)))
    with supervised_group(
        RunParts(config, context.cluster, inputs),
        name=name,
        model=model,
        schedule=schedule(config, phase, num_steps=num_steps),
        train=ray.put(train),
        validation=ray.put(inputs.pairs(inputs.held_out)),
        message=context.console.message,
    ) as group:
        group.join(startup_timeout_seconds=config.pipeline.startup_timeout_seconds)
        return train_epochs(context, phase, group, train, name=name)
