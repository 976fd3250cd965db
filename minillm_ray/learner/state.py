"""The state of a learner on disk: trained weights, AdamW's moments, the step count, the random generators.

    trainer -> snapshot: this rank's shards, copied -> write: in any thread, no collective -> learner/rank-0.safetensors
    learner/ -> load_state: each rank reads what its own shards need, whatever number of ranks wrote it

The files are safetensors with the index that `torch.distributed.checkpoint` reads (HuggingFaceStorageReader), which
cuts them anew for other numbers of ranks. Its own format and its savers are not used: they pickle their index, meet in
collectives that must not run beside a training step, and invent a first optimizer step where there was none.

Not saved: frozen weights (the phase's starting model has them), hyperparameters (the configuration), the learning rate
(a function of the step), and gradients (there are none between two steps).
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from minillm_ray.checkpoint.files import CheckpointError, FileRecord, write_file, write_tensors
from minillm_ray.config.errors import InputError
from minillm_ray.learner.random_state import random_state, restore_random_state
from minillm_ray.learner.trainer import StudentTrainer

_FOLDER = "learner"


@dataclass(frozen=True)
class LearnerSnapshot:
    """One rank's state in memory of its own: later steps of the trainer do not reach it.

    shards: this rank's part of each tensor; offsets: where it starts in the whole tensor, one number an axis.
    """

    rank: int
    num_ranks: int
    num_steps: int
    random: dict[str, Any]
    shards: dict[str, npt.NDArray[np.generic]]
    offsets: dict[str, list[int]]

    def write(self, folder: Path) -> list[FileRecord]:
        """Write this rank's two files below the checkpoint's `folder`. Raises CheckpointError.

        Needs neither the trainer nor the other ranks: it may run in a thread beside the next steps.
        """
        index = {name: {"saved_offsets": offsets} for name, offsets in self.offsets.items()}
        counters = {"num_steps": self.num_steps, "num_ranks": self.num_ranks, "random": self.random}
        return [
            write_tensors(
                folder,
                f"{_FOLDER}/rank-{self.rank}.safetensors",
                self.shards,
                {"format": "pt", "DCP_SHARDING_INFO": json.dumps(index)},
            ),
            write_file(folder, f"{_FOLDER}/rank-{self.rank}.json", json.dumps(counters)),
        ]


def snapshot(trainer: StudentTrainer) -> LearnerSnapshot:
    """This rank's state between two steps, copied to CPU memory: 12 bytes a parameter that the rank holds."""
    shards: dict[str, npt.NDArray[np.generic]] = {}
    offsets: dict[str, list[int]] = {}
    for name, tensor in _named_state(trainer):
        local, offsets[name] = _local_shard(tensor)
        shards[name] = local.to("cpu", copy=True).numpy()
    rank = trainer.rank
    return LearnerSnapshot(rank.index, rank.size, trainer.num_steps, random_state(), shards, offsets)


def save_state(trainer: StudentTrainer, folder: Path) -> list[FileRecord]:
    """Write this rank's state below the checkpoint's `folder` at once. Raises CheckpointError."""
    return snapshot(trainer).write(folder)


def load_state(trainer: StudentTrainer, folder: Path) -> None:
    """Bring `trainer` to the state in the complete checkpoint `folder`. Every rank calls it; none waits for another.

    A rank beyond those that wrote the checkpoint keeps its own random generators.
    Raises InputError if the checkpoint is of another student or other adapters, CheckpointError if it was sealed
    without the files of some rank.
    """
    learner = folder / _FOLDER
    own = learner / f"rank-{trainer.rank.index}.json"
    counters = json.loads((own if own.exists() else learner / "rank-0.json").read_text())
    for rank in range(counters["num_ranks"]):
        if not (shard := learner / f"rank-{rank}.safetensors").exists():
            raise CheckpointError(f"{shard} is missing; expected the shards of all {counters['num_ranks']} ranks")
    reader = HuggingFaceStorageReader(str(learner))
    stored = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    _reshard(trainer.student)
    _allocate_optimizer_state(trainer, stored)
    targets = dict(_named_state(trainer))
    _require_same(targets, stored, folder)
    with warnings.catch_warnings():
        # Each rank reads by itself on purpose.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        load(dict(targets), storage_reader=reader, no_dist=True)
    trainer.num_steps = counters["num_steps"]
    if own.exists():
        restore_random_state(counters["random"])


def _named_state(trainer: StudentTrainer) -> Iterator[tuple[str, Tensor]]:
    """Trained weights and their optimizer state. A weight that no step has reached has none of the latter."""
    for name, parameter in trainer.parameters.items():
        yield f"weights.{name}", parameter.detach()
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", value


def _local_shard(tensor: Tensor) -> tuple[Tensor, list[int]]:
    if not isinstance(tensor, DTensor):
        return tensor, [0] * tensor.ndim
    _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), list(start)


def _allocate_optimizer_state(trainer: StudentTrainer, stored: dict[str, tuple[int, ...]]) -> None:
    """Room for what the checkpoint holds, and nothing else."""
    trainer.optimizer.state.clear()
    for name, parameter in trainer.parameters.items():
        if f"optimizer.step.{name}" in stored:
            moments = {key: torch.zeros_like(parameter.detach()) for key in ("exp_avg", "exp_avg_sq")}
            trainer.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}


def _require_same(targets: dict[str, Tensor], stored: dict[str, tuple[int, ...]], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    differing = [name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)]
    if differing:
        name = max(differing)  # a weight, where there is one among them
        raise InputError(
            f"{folder}: {len(differing)} tensors differ from what is trained here; {name} is "
            f"{stored.get(name, 'not in the checkpoint')}, here {expected.get(name, 'not trained')}. Resume with the "
            f"student and learner.lora that wrote it, or start over with --fresh"
        )


def _reshard(student: torch.nn.Module) -> None:
    """Drop whole parameters that a forward pass left behind; they would hide what is loaded into the shards."""
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
