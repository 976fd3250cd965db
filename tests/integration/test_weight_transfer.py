"""vLLM's weight-transfer API as we use it, without a GPU: the engine's side over memory, the trainer's without NCCL.

What stays untested is NCCL itself.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm_ray.data import write_embedded
from minillm_ray.engines.embedded_models import write_embedded_model
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings, GeneratedSequence, GenerationEngine
from minillm_ray.engines.weight_transfer import open_group

BACKEND = "over-memory"
CALLS: list[str] = []
WEIGHTS: dict[str, torch.Tensor] = {}


def register_backend() -> None:
    """A backend of vLLM's that takes tensors out of WEIGHTS and does the rest as its NCCL backend does."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    @dataclass
    class Init(WeightTransferInitInfo):
        place: str

    @dataclass
    class Update(WeightTransferUpdateInfo):
        names: list[str]

    class OverMemory(WeightTransferEngine):
        init_info_cls, update_info_cls = Init, Update
        start_weight_update = NCCLWeightTransferEngine.start_weight_update
        finish_weight_update = NCCLWeightTransferEngine.finish_weight_update

        def init_transfer_engine(self, init_info: Init) -> None:
            CALLS.append(f"meet at {init_info.place}")

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Update) -> None:
            CALLS.append("receive")
            self.model.load_weights((name, WEIGHTS[name]) for name in update_info.names)

        def shutdown(self) -> None:
            CALLS.append("leave")

    WeightTransferEngineFactory.register_engine(BACKEND, OverMemory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained embedded students, tied."""
    folder = tmp_path_factory.mktemp("transfer") / "embedded"
    write_embedded(folder, num_train=40, num_held_out=8, vocab_size=512, seed=0)
    for seed in (0, 1):
        write_embedded_model("student", folder / "tokenizer", folder / f"student-{seed}", seed)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> GenerationEngine:
    """In this process, as in an actor's."""
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    register_backend()
    settings = EngineSettings(
        model=str(folder / "student-0"),
        dtype="float32",
        max_model_tokens=64,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=512,
        seed=0,
        weight_transfer=BACKEND,
    )
    return GenerationEngine(settings, temperature=1.0, stop_token_ids=[0])


def draw(engine: GenerationEngine) -> GeneratedSequence:
    engine.add("one", list(range(1, 40)), max_new_tokens=12, seed=3)
    return finish(engine)


def finish(engine: GenerationEngine) -> GeneratedSequence:
    while engine.has_unfinished():
        for sequence in engine.step():
            return sequence
    raise AssertionError("no response")


def test_weights_that_are_received_are_those_that_would_be_loaded(engine: GenerationEngine, folder: Path) -> None:
    """Also where a request is in flight: its later tokens are drawn by the new weights, and say so."""
    model = AutoModelForCausalLM.from_pretrained(folder / "student-1", dtype=torch.float32)
    WEIGHTS.update(model.state_dict())
    old = draw(engine)
    engine.join_weight_group({"place": "here"})
    engine.add("two", list(range(1, 40)), max_new_tokens=12, seed=3)
    for _ in range(4):
        engine.step()
    engine.receive_weights({"names": list(WEIGHTS)}, 5)
    assert CALLS == ["leave", "meet at here", "receive"]
    crossing = finish(engine)
    assert crossing.weight_version.tolist() == [0] * 4 + [5] * 8
    assert crossing.token_ids[:4].tolist() == old.token_ids[:4].tolist()
    received = draw(engine)
    engine.load_weights(WEIGHTS.items(), 6)
    loaded = draw(engine)
    assert received.weight_version.tolist() == [5] * 12
    np.testing.assert_array_equal(received.token_ids, loaded.token_ids)
    np.testing.assert_allclose(received.logprob, loaded.logprob, atol=1e-6)
    assert abs(received.logprob - old.logprob).max() > 1e-3


class Control:
    """Writes down what vLLM's trainer asks of a replica."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.calls.append(("init", init_info))

    def start_weight_update(self) -> None:
        self.calls.append(("start", None))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append(("update", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(("finish", weight_version))


def test_vllms_trainer_calls_a_replica_with_what_its_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meet once, then start, update and finish for each send; the tensors as they are at the time of the send."""
    from vllm.distributed.weight_transfer import nccl_engine

    sent: list[dict[str, list[float]]] = []
    endpoints: list[Any] = []

    def send(iterator: Iterator[tuple[str, torch.Tensor]], **_: Any) -> None:
        sent.append({name: tensor.tolist() for name, tensor in iterator})

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: endpoints.append(info) or object())
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", send)
    control, tensors = Control(), {"a": torch.ones(2, 2, dtype=torch.bfloat16), "b": torch.tensor([3])}
    group = open_group(control, tensors, address="10.0.0.1:2345", num_workers=2, buffer_bytes=1000)
    group.send_weights()
    tensors["a"].mul_(2.0)
    group.send_weights()
    assert [name for name, _ in control.calls] == ["init", *(["start", "update", "finish"] * 2)]
    assert sent == [{"a": [[1.0, 1.0]] * 2, "b": [3]}, {"a": [[2.0, 2.0]] * 2, "b": [3]}]
    [endpoint] = endpoints
    joined = nccl_engine.NCCLWeightTransferInitInfo(**control.calls[0][1])
    assert (endpoint.master_address, endpoint.master_port, endpoint.world_size) == ("10.0.0.1", 2345, 3)
    assert (joined.master_address, joined.master_port, joined.world_size) == ("10.0.0.1", 2345, 3)
    assert (joined.rank_offset, joined.packed, joined.packed_buffer_size_bytes) == (1, True, 1000)
    update = nccl_engine.NCCLWeightTransferUpdateInfo(**control.calls[2][1])
    assert (update.names, update.dtype_names, update.shapes) == (["a", "b"], ["bfloat16", "int64"], [[2, 2], [1]])
