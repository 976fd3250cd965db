"""What every rank of a learner group does, whatever it trains: join, load the model, save it, keep its state.

The work runs in one thread; signs of life and waiting for a checkpoint's files have threads of their own.
"""

import socket
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from minillm_ray.checkpoint.files import CheckpointError, FileRecord
from minillm_ray.engines.model_folder import save_model_folder
from minillm_ray.learner.lora import LoraSettings
from minillm_ray.learner.ranks import Rank, join_ranks
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.sharding import ComputeDtype, shard
from minillm_ray.learner.state import load_state, snapshot
from minillm_ray.learner.student import load_student
from minillm_ray.learner.trainer import OptimizerSettings, StudentTrainer
from minillm_ray.remote import Beat
from minillm_ray.telemetry.actor_logs import redirect_output


@dataclass(frozen=True)
class TrainingSpec:
    """The model to train and how: the same on every rank. threads: of one rank where there is no GPU."""

    model: str
    vocabulary_size: int
    compute_dtype: ComputeDtype
    gradient_checkpointing: bool
    lora: LoraSettings | None
    optimizer: OptimizerSettings
    schedule: LearningRateSchedule
    micro_batch_tokens: int
    logits_memory_mb: int
    device: str
    threads: int
    seed: int


CONCURRENCY_GROUPS = {"beat": 1, "files": 1}
"""Of every actor that is a RankProcess."""


class RankProcess(ABC):
    """One rank: `address` on rank 0, `join` on all with that address, then the work of a subclass."""

    def __init__(self, spec: TrainingSpec, index: int, size: int, log_file: Path) -> None:
        redirect_output(log_file)
        self._spec = spec
        self._index = index
        self._size = size
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[list[FileRecord]] = Future()

    def ready(self) -> int:
        """Answers once the process is there, with its rank."""
        return self._index

    @ray.method(concurrency_group="beat")
    def ping(self) -> Beat:
        """The process lives; whether its work moves on, the deadline of that work says."""
        return Beat(0.0)

    def address(self) -> str:
        """host:port on this rank's node, free a moment ago, for the group to meet at."""
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"{host}:{listener.getsockname()[1]}"

    def join(self, address: str, timeout_seconds: float) -> int:
        """Meet the other ranks and load the model, sharded where there are several ranks or bfloat16 passes.

        Returns `num_buffers`.
        """
        spec = self._spec
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        rank = join_ranks(
            self._index,
            self._size,
            address,
            device=spec.device,
            timeout_seconds=timeout_seconds,
            always_group=spec.compute_dtype != "float32",
        )
        student = load_student(
            spec.model,
            vocabulary_size=spec.vocabulary_size,
            dtype=torch.float32,
            device=rank.device,
            gradient_checkpointing=spec.gradient_checkpointing,
            lora=spec.lora,
        )
        if rank.in_group:
            shard(student, rank, compute_dtype=spec.compute_dtype)
        self.trainer = StudentTrainer(student, rank, optimizer=spec.optimizer, schedule=spec.schedule)
        self._on_joined(rank)
        return self.num_buffers

    @property
    def num_buffers(self) -> int:
        """How many buffers this rank publishes beside a manifest."""
        return 0

    @abstractmethod
    def _on_joined(self, rank: Rank) -> None:
        """Build what needs the trainer; called once on each rank."""

    def snapshot(self, folder: Path) -> None:
        """Copy this rank's state and begin to write it below `folder`, beside the next steps."""
        state = snapshot(self.trainer)
        self._writing = self._writer.submit(state.write, folder)

    @ray.method(concurrency_group="files")
    def written(self) -> list[FileRecord] | CheckpointError:
        """The files of the last snapshot, once they are on disk, or why they are not: the rank itself is well."""
        try:
            return self._writing.result()
        except CheckpointError as error:
            return error

    def load(self, folder: Path) -> None:
        """Go to the state in the checkpoint `folder`; every rank calls it."""
        load_state(self.trainer, folder)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer to `folder` in Hugging Face format; every rank calls it, rank 0 writes."""
        weights = {
            name: tensor.detach().cpu() for name, tensor in self.trainer.student.named_weights() if self._index == 0
        }
        if self._index == 0:
            save_model_folder(self.trainer.student.plain_model, self._spec.model, folder, weights=weights)
