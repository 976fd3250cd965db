"""pipeline.json: where the driver stands, what it has handed out, and what came back and is not trained yet.
epochs.json in its place, where a phase goes over given pairs.

Arrays never stand here, only the names of the files that hold them; the learner's state has files of its own.
"""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, ValidationError

from minillm_ray.checkpoint.files import FileRecord, write_file
from minillm_ray.config.errors import InputError

PIPELINE_FILE = "pipeline.json"
EPOCHS_FILE = "epochs.json"


class _Strict(BaseModel):
    """Every key that it has and no other, every value of its type: what was written is what is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class UntrainedResponse(_Strict):
    """A finished response that no step has trained. place: of its assignment in the ledger; version: of the weights
    that it was begun with. Its trajectory stands at the same place in the file of trajectories."""

    place: NonNegativeInt
    version: NonNegativeInt


class PipelineState(_Strict):
    """The driver's half of a checkpoint, between two rounds.

    phase       Name of the phase. rounds, num_texts: rounds and chunks of plain text that are trained.
    ledger      The ledger's own state, whatever it is: all that was out is untrained in it, and is drawn anew on
                resume unless it is in `untrained`.
    """

    format_version: Literal[1] = 1
    phase: str
    rounds: NonNegativeInt
    num_texts: NonNegativeInt
    ledger: dict[str, JsonValue]
    untrained: tuple[UntrainedResponse, ...] = ()


class EpochsState(_Strict):
    """The driver's half of a checkpoint of a supervised phase, between two steps.

    steps        Optimizer steps done.
    best_loss    The lowest validation loss so far, whose weights are kept; None before the first.
    """

    format_version: Literal[1] = 1
    phase: str
    steps: NonNegativeInt
    best_loss: float | None


State = TypeVar("State", PipelineState, EpochsState)


def write_pipeline_state(folder: Path, state: PipelineState) -> FileRecord:
    """Write folder/pipeline.json. Raises CheckpointError."""
    return write_file(folder, PIPELINE_FILE, state.model_dump_json(indent=1) + "\n")


def read_pipeline_state(folder: Path) -> PipelineState:
    """The PipelineState in a complete checkpoint. Raises InputError where another release wrote it."""
    return _read(folder / PIPELINE_FILE, PipelineState)


def write_epochs_state(folder: Path, state: EpochsState) -> FileRecord:
    """Write folder/epochs.json. Raises CheckpointError."""
    return write_file(folder, EPOCHS_FILE, state.model_dump_json(indent=1) + "\n")


def read_epochs_state(folder: Path) -> EpochsState:
    """The EpochsState in a complete checkpoint. Raises InputError where another release wrote it."""
    return _read(folder / EPOCHS_FILE, EpochsState)


def _read(path: Path, state: type[State]) -> State:
    try:
        return state.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: {where or 'content'}: {first['msg'].lower()}; another release wrote it. Resume with that one, or "
            f"start over with --fresh"
        ) from None
