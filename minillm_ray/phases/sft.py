"""Supervised fine-tuning of the teacher or the student; the weights with the lowest validation loss are kept."""

import time
from dataclasses import replace

import ray

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SftPhase
from minillm_ray.data import cut_batches, epoch_order
from minillm_ray.phases.roles import supervised_group
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.telemetry.console import StepNumbers

_TRAIN_LOSS = "learner/supervised_loss_nats_per_token/train"
_VALIDATION_LOSS = "learner/supervised_loss_nats_per_token/validation"


def run_sft(context: RunContext, phase: SftPhase, models: Models, *, name: str) -> Models:
    """Train `phase.model` on the data's own responses. Returns the pair with the best checkpoint in its place."""
    config, inputs = context.config, context.inputs
    train = inputs.pairs(inputs.train[: phase.train_rows])
    validation = inputs.pairs(inputs.held_out)
    if train.num_cut or train.num_truncated:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} prompts were cut to data.max_prompt_tokens="
            f"{config.data.max_prompt_tokens}, {train.num_truncated} responses to rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}"
        )
    batches_an_epoch = -(-len(train) // phase.batch_size)
    num_steps = batches_an_epoch * phase.epochs
    best_folder = config.run_dir / "phases" / name / "best"
    model = models.teacher if phase.model == "teacher" else models.student
    with supervised_group(
        config,
        context.cluster,
        inputs,
        phase,
        model=model,
        num_steps=num_steps,
        train=ray.put(train),
        validation=ray.put(validation),
    ) as group:
        group.join(startup_timeout_seconds=config.pipeline.startup_timeout_seconds)
        context.console.begin(name, total_steps=num_steps)
        best, step = float("inf"), 0
        for epoch in range(phase.epochs):
            for rows in cut_batches(epoch_order(len(train), epoch, config.seed), phase.batch_size, remainder="keep"):
                start = time.monotonic()
                loss, outcome = group.step(rows.tolist())
                seconds = time.monotonic() - start
                step += 1
                num_tokens = sum(len(train.example(int(row))[0]) for row in rows)
                numbers = {
                    _TRAIN_LOSS: loss,
                    "learner/gradient_norm/global": outcome.gradient_norm,
                    "learner/learning_rate/current": outcome.learning_rate,
                    "learner/step_seconds/total": seconds,
                }
                if step % batches_an_epoch == 0:
                    validation_loss = group.validation_loss()
                    numbers[_VALIDATION_LOSS] = validation_loss
                    if validation_loss < best:
                        best = validation_loss
                        group.save(best_folder)
                        context.events.write("checkpoint_kept", {"phase": name, "epoch": epoch, "loss": best})
                context.metrics.write(step=step, phase=name, metrics=numbers)
                context.console.step(step, StepNumbers(loss=loss, tokens_per_second=num_tokens / seconds))
        context.console.end()
    if best == float("inf"):
        raise RunError(f"{name}: the validation loss was never finite; lower learning_rate={phase.learning_rate}")
    context.console.message(f"{name}: lowest validation loss {best:.4f} nats a token")
    return replace(models, **{phase.model: str(best_folder)})
