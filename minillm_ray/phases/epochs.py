"""Training on pairs of prompt and response, epoch after epoch; the weights with the lowest validation loss are kept."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SupervisedPhase
from minillm_ray.data import SupervisedSet, cut_batches, epoch_order
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.phases.epoch_checkpoints import EpochCheckpoints, Standing, StatefulTrainer
from minillm_ray.phases.run_context import RunContext
from minillm_ray.telemetry.console import StepNumbers

_TRAIN_LOSS = "learner/supervised_loss_nats_per_token/train"
_VALIDATION_LOSS = "learner/supervised_loss_nats_per_token/validation"


class EpochTrainer(StatefulTrainer, Protocol):
    """All learner ranks together, and what they are trained on. Losses are nats a token."""

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]: ...
    def validation_loss(self) -> float: ...
    def save(self, folder: Path) -> None: ...


def epoch_batches(phase: SupervisedPhase, num_rows: int, *, seed: int) -> list[list[list[int]]]:
    """Row numbers of each optimizer step of each epoch; the last step of an epoch may have fewer."""
    return [
        [rows.tolist() for rows in cut_batches(epoch_order(num_rows, epoch, seed), phase.batch_size, remainder="keep")]
        for epoch in range(phase.epochs)
    ]


def train_epochs(
    context: RunContext,
    phase: SupervisedPhase,
    trainer: EpochTrainer,
    train: SupervisedSet,
    *,
    name: str,
    checkpoints: EpochCheckpoints,
    standing: Standing,
) -> Path:
    """Every step from `standing` on, which the trainer's state is of. Returns the folder of the kept weights.

    Raises RunError where the validation loss was never finite.
    """
    epochs = epoch_batches(phase, len(train), seed=context.config.seed)
    ordered = [(epoch, rows) for epoch, batches in enumerate(epochs) for rows in batches]
    best_folder = context.config.run_dir / "phases" / name / "best"
    context.console.begin(name, total_steps=len(ordered), done_steps=standing.steps)
    context.status.begin(name, total_steps=len(ordered), done_steps=standing.steps)
    best = standing.best_loss
    for step, (epoch, rows) in enumerate(ordered[standing.steps :], start=standing.steps + 1):
        start = time.monotonic()
        loss, outcome = trainer.step(rows)
        seconds = time.monotonic() - start
        numbers = {
            _TRAIN_LOSS: loss,
            "learner/gradient_norm/global": outcome.gradient_norm,
            "learner/learning_rate/current": outcome.learning_rate,
            "learner/step_seconds/total": seconds,
        }
        if step == len(ordered) or ordered[step][0] != epoch:
            numbers[_VALIDATION_LOSS] = validation_loss = trainer.validation_loss()
            if validation_loss < best:
                best = validation_loss
                trainer.save(best_folder)
                context.events.write("checkpoint_kept", {"phase": name, "epoch": epoch, "loss": best})
        context.metrics.write(step=step, phase=name, metrics=numbers)
        context.status.step(step)
        num_tokens = sum(len(train.example(row)[0]) for row in rows)
        context.console.step(step, StepNumbers(loss=loss, tokens_per_second=num_tokens / seconds))
        if step < len(ordered):
            checkpoints.after_step(step, best, trainer)
    context.console.end()
    if best == float("inf"):
        raise RunError(f"{name}: the validation loss was never finite; lower learning_rate={phase.learning_rate}")
    context.console.message(f"{name}: lowest validation loss {best:.4f} nats a token")
    checkpoints.remove()
    return best_folder
