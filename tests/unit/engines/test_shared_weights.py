"""Weights on their way to an engine's worker processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm_ray.engines import shared_weights


class Worker:
    """Keeps what it is given, as vLLM's copies it into its model."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def reload_weights(self, weights_iterator: Any) -> None:
        self.weights = {name: tensor.clone() for name, tensor in weights_iterator}


def weights_of_one_buffer() -> dict[str, Tensor]:
    """As they arrive: views of the bytes of a bucket, of several types; and a head tied to the embedding."""
    buffer = torch.randint(0, 256, (192,), dtype=torch.uint8)
    embedding = buffer[:64].view(torch.bfloat16).view(4, 8)
    return {
        "embedding": embedding,
        "norm": buffer[64:128].view(torch.float32).view(16),
        "positions": buffer[128:192].view(torch.int64).view(8),
        "head": embedding,
    }


def test_every_worker_reads_the_very_bytes_and_the_file_goes() -> None:
    weights = weights_of_one_buffer()
    workers = Worker(), Worker()
    with shared_weights.written(weights.items()) as file:
        for worker in workers:
            shared_weights.load(worker, str(file))
    assert not file.exists() and not file.parent.exists()
    for worker in workers:
        assert worker.weights.keys() == weights.keys()
        for name, tensor in weights.items():
            assert worker.weights[name].dtype == tensor.dtype
            assert torch.equal(worker.weights[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("room", [0, None])
def test_without_room_in_memory_they_go_to_the_disk(
    room: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none, or no such folder."""
    memory = tmp_path / "memory"
    if room is not None:
        memory.mkdir()
        monkeypatch.setattr(shared_weights.shutil, "disk_usage", lambda path: type("Usage", (), {"free": room}))
    monkeypatch.setattr(shared_weights, "MEMORY", memory)
    with shared_weights.written(weights_of_one_buffer().items()) as file:
        assert memory not in file.parents
