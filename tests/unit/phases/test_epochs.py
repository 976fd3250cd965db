"""Epoch after epoch over all rows, which weights of them are kept, and where a phase goes on that was cut short."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted.run_context import scripted_context
from scripted.scored import supervised_set

from minillm_ray.checkpoint.files import CheckpointError, FileRecord, write_file
from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SftPhase
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.phases.epoch_checkpoints import EpochCheckpoints
from minillm_ray.phases.epochs import epoch_batches, train_epochs
from minillm_ray.remote import WorkFailed
from minillm_ray.telemetry.events import read_events
from minillm_ray.telemetry.metrics import read_metrics

NAME = "1-sft-student"
NUM_ROWS = 7
VALIDATION = "learner/supervised_loss_nats_per_token/validation"
PAIRS = supervised_set([(torch.arange(4), 2)] * NUM_ROWS)


def phase(**settings: Any) -> SftPhase:
    return SftPhase(kind="sft", model="student", **({"epochs": 3, "batch_size": 3} | settings))


class ScriptedTrainer:
    """Writes down what it is asked. losses: its validation losses, in order; dies_at: the number of a step, from 1.

    Its state is a file of the number of steps.
    """

    def __init__(self, losses: Sequence[float], *, dies_at: int | None = None, full_disk: bool = False) -> None:
        self.losses = list(losses)
        self._dies_at, self._full_disk = dies_at, full_disk
        self._files: list[FileRecord] = []
        self.steps: list[list[int]] = []
        self.saved_after: list[int] = []
        self.folder: Path | None = None

    def step(self, rows: Sequence[int]) -> tuple[float, StepOutcome]:
        if len(self.steps) + 1 == self._dies_at:
            raise WorkFailed("a supervised step: its actor died")
        self.steps.append(list(rows))
        return 1.0, StepOutcome(0.5, 1e-3, True)

    def validation_loss(self) -> float:
        return self.losses.pop(0)

    def save(self, folder: Path) -> None:
        self.folder = folder
        self.saved_after.append(len(self.steps))

    def snapshot(self, folder: Path) -> None:
        self._files = [write_file(folder, "steps", str(len(self.steps)))]

    def written(self) -> list[FileRecord]:
        if self._full_disk:
            raise CheckpointError("no space")
        return self._files


def run(folder: Path, trainer: ScriptedTrainer) -> Path:
    """From the newest checkpoint in `folder` on."""
    context = scripted_context(folder)
    checkpoints = EpochCheckpoints(context, name=NAME)
    return train_epochs(
        context, phase(), trainer, PAIRS, name=NAME, checkpoints=checkpoints, standing=checkpoints.newest()
    )


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
    found = run(tmp_path, trainer)
    assert found == trainer.folder == tmp_path / "phases" / NAME / "best"
    assert trainer.saved_after == [3, 6]
    kept = [event.fields for event in read_events(tmp_path / "events.jsonl") if event.kind == "checkpoint_kept"]
    assert [(fields["epoch"], fields["loss"]) for fields in kept] == [(0, 2.0), (1, 1.0)]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row["step"]: row[VALIDATION] for row in rows if VALIDATION in row} == {3: 2.0, 6: 1.0, 9: 1.5}


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path: Path) -> None:
    """There is no model to go on with; the message names the learning rate."""
    trainer = ScriptedTrainer([float("nan"), float("nan"), float("inf")])
    with pytest.raises(RunError, match=r"never finite; lower learning_rate=0\.0001"):
        run(tmp_path, trainer)
    assert trainer.saved_after == []


def test_a_phase_that_is_cut_short_goes_on_after_its_newest_checkpoint(tmp_path: Path) -> None:
    """With the step and the lowest loss that it was of: step 7 is lost, the loss after step 6 is not."""
    with pytest.raises(WorkFailed):
        run(tmp_path, ScriptedTrainer([2.0, 1.0], dies_at=8))
    standing = EpochCheckpoints(scripted_context(tmp_path), name=NAME).newest()
    assert (standing.steps, standing.best_loss) == (6, 1.0)
    assert standing.restore_from is not None
    assert (standing.restore_from / "steps").read_text() == "6"
    later = ScriptedTrainer([1.5])
    run(tmp_path, later)
    batches = [rows for of_epoch in epoch_batches(phase(), NUM_ROWS, seed=0) for rows in of_epoch]
    assert later.steps == batches[6:]
    assert later.saved_after == [], "the third epoch is worse than the second, which the first run made"


def test_a_phase_that_is_over_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Its result has a folder of its own; the learner's state would be twice as much again."""
    run(tmp_path, ScriptedTrainer([3.0, 2.0, 1.0]))
    assert not (tmp_path / "checkpoints" / NAME).exists()
    saved = [
        event.fields["step"] for event in read_events(tmp_path / "events.jsonl") if event.kind == "checkpoint_saved"
    ]
    assert saved == [2, 4, 6]


def test_a_checkpoint_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """It is said, and the phase goes on."""
    trainer = ScriptedTrainer([3.0, 2.0, 1.0], full_disk=True)
    run(tmp_path, trainer)
    assert len(trainer.steps) == 9
    failed = [event.fields for event in read_events(tmp_path / "events.jsonl") if event.kind == "checkpoint_failed"]
    assert failed[0] == {"phase": NAME, "step": 2, "reason": "no space"}
    assert "no checkpoint of step 2: no space" in (tmp_path / "console").read_text()
