"""A supervised phase's checkpoints: begun between two steps, written beside the next one, sealed after it.

A checkpoint that cannot be written (a full disk) is reported and given up; the run goes on with the one before it.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from minillm_ray.checkpoint.contents import EpochsState, read_epochs_state, write_epochs_state
from minillm_ray.checkpoint.files import CheckpointError, FileRecord
from minillm_ray.checkpoint.folder import PendingCheckpoint, begin, latest, remove_leftovers
from minillm_ray.phases.run_context import RunContext


class StatefulTrainer(Protocol):
    """All learner ranks together. written: waits for the files of the last snapshot; raises CheckpointError."""

    def snapshot(self, folder: Path) -> None: ...
    def written(self) -> Sequence[FileRecord]: ...


@dataclass(frozen=True)
class Standing:
    """Where a phase stands. steps: optimizer steps done; best_loss: the lowest validation loss, inf before the first;
    restore_from: the checkpoint with the learner's state, None for the phase's first weights."""

    steps: int = 0
    best_loss: float = math.inf
    restore_from: Path | None = None


class EpochCheckpoints:
    """In RUN/checkpoints/NAME, at most one of them under way."""

    def __init__(self, context: RunContext, *, name: str) -> None:
        self._context, self._name = context, name
        self._section = context.config.checkpoint
        self._folder = context.config.run_dir / "checkpoints" / name
        self._pending: PendingCheckpoint | None = None
        self._state: EpochsState | None = None
        remove_leftovers(self._folder)

    def newest(self) -> Standing:
        """Of the newest whole checkpoint; without one the phase's beginning. What is under way is given up."""
        self._discard()
        checkpoint = latest(self._folder, warn=self._context.console.message)
        if checkpoint is None:
            return Standing()
        state = read_epochs_state(checkpoint.path)
        best_loss = math.inf if state.best_loss is None else state.best_loss
        self._context.console.message(f"{self._name}: continues after step {state.steps}, from {checkpoint.path}")
        self._context.events.write("resumed", {"phase": self._name, "step": state.steps})
        return Standing(state.steps, best_loss, checkpoint.path)

    def after_step(self, steps: int, best_loss: float, trainer: StatefulTrainer) -> None:
        """Seal what was begun after the step before, and begin another where one is due."""
        if self._pending is not None:
            self._seal(trainer)
        if steps % self._section.every_steps == 0:
            self._begin(steps, best_loss, trainer)

    def remove(self) -> None:
        """The phase is over: its result is in a folder of its own."""
        self._discard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, steps: int, best_loss: float, trainer: StatefulTrainer) -> None:
        try:
            self._pending = begin(self._folder, steps)
        except CheckpointError as error:
            self._give_up(steps, error)
            return
        best = None if math.isinf(best_loss) else best_loss
        self._state = EpochsState(phase=self._name, steps=steps, best_loss=best)
        trainer.snapshot(self._pending.path)

    def _seal(self, trainer: StatefulTrainer) -> None:
        assert self._pending is not None
        assert self._state is not None
        pending, state = self._pending, self._state
        try:
            files = [*trainer.written(), write_epochs_state(pending.path, state)]
            pending.seal(files, weight_version=0, keep=self._section.keep)
        except CheckpointError as error:
            self._give_up(state.steps, error)
            return
        self._pending = None
        self._context.events.write("checkpoint_saved", {"phase": self._name, "step": state.steps})

    def _discard(self) -> None:
        if self._pending is not None:
            self._pending.discard()
            self._pending = None

    def _give_up(self, steps: int, error: Exception) -> None:
        self._discard()
        self._context.events.write("checkpoint_failed", {"phase": self._name, "step": steps, "reason": str(error)})
        self._context.console.message(f"no checkpoint of step {steps}: {error}")
