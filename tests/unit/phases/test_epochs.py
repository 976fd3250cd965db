"""Epoch after epoch over all rows, and which weights of them are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted.run_context import scripted_context
from scripted.scored import supervised_set

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SftPhase
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.phases.epochs import epoch_batches, train_epochs
from minillm_ray.telemetry.events import read_events
from minillm_ray.telemetry.metrics import read_metrics

NUM_ROWS = 7
VALIDATION = "learner/supervised_loss_nats_per_token/validation"
PAIRS = supervised_set([(torch.arange(4), 2)] * NUM_ROWS)


def phase(**settings: Any) -> SftPhase:
    return SftPhase(kind="sft", model="student", **({"epochs": 3, "batch_size": 3} | settings))


class ScriptedTrainer:
    """Writes down what it is asked. losses: its validation losses, in order."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses = list(losses)
        self.steps: list[list[int]] = []
        self.saved_after: list[int] = []
        self.folder: Path | None = None

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]:
        self.steps.append(list(rows))
        return 1.0, StepOutcome(0.5, 1e-3, True)

    def validation_loss(self) -> float:
        return self.losses.pop(0)

    def save(self, folder: Path) -> None:
        self.folder = folder
        self.saved_after.append(len(self.steps))


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    """The last batch of an epoch is smaller: no row is dropped, none is carried over."""
    epochs = epoch_batches(phase(), NUM_ROWS, seed=1)
    assert [[len(rows) for rows in batches] for batches in epochs] == [[3, 3, 1]] * 3
    orders = [[row for rows in batches for row in rows] for batches in epochs]
    assert all(sorted(order) == list(range(NUM_ROWS)) for order in orders)
    assert orders[0] != orders[1]
    assert epochs == epoch_batches(phase(), NUM_ROWS, seed=1)


def test_the_weights_of_the_lowest_validation_loss_are_kept(tmp_path: Path) -> None:
    """Measured after each epoch; a worse epoch that follows does not replace them."""
    trainer = ScriptedTrainer([2.0, 1.0, 1.5])
    context = scripted_context(tmp_path)
    found = train_epochs(context, phase(), trainer, PAIRS, name="1-sft-student")
    assert found == trainer.folder == tmp_path / "phases" / "1-sft-student" / "best"
    assert trainer.saved_after == [3, 6]
    kept = [event.fields for event in read_events(tmp_path / "events.jsonl") if event.kind == "checkpoint_kept"]
    assert [(fields["epoch"], fields["loss"]) for fields in kept] == [(0, 2.0), (1, 1.0)]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row["step"]: row[VALIDATION] for row in rows if VALIDATION in row} == {3: 2.0, 6: 1.0, 9: 1.5}


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path: Path) -> None:
    """There is no model to go on with; the message names the learning rate."""
    trainer = ScriptedTrainer([float("nan"), float("nan"), float("inf")])
    with pytest.raises(RunError, match=r"never finite; lower learning_rate=0\.0001"):
        train_epochs(scripted_context(tmp_path), phase(), trainer, PAIRS, name="1-sft-student")
    assert trainer.saved_after == []
