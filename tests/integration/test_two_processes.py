"""Engines whose model lies in two worker processes, as on two devices: half of each layer in either, or of the layers.

A file of its own: where such an engine ends, vLLM ends what other engines of the same process share.
"""

import asyncio
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted.models import VOCABULARY, save_tiny_folder
from transformers import AutoModelForCausalLM

from minillm_ray.engines import shared_weights
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings, GenerationEngine
from minillm_ray.engines.hidden_states import HiddenRows
from minillm_ray.engines.pooling import PoolingEngine
from minillm_ray.engines.transformers_hidden import reference
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.replica import TeacherFacts, TeacherReplica, TeacherSpec

MAX_TOKENS = 128
PROMPT = [5, 3, 8, 1, 9]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    folder = tmp_path_factory.mktemp("two") / "model"
    sizes = {"hidden_size": 64, "layers": 2, "intermediate_size": 128, "max_position_embeddings": MAX_TOKENS}
    save_tiny_folder(folder, words=tuple(f"<{k}>" for k in range(VOCABULARY)), **sizes)
    return EngineSettings(
        model=str(folder),
        dtype="float32",
        max_model_tokens=MAX_TOKENS,
        tensor_parallel=2,
        device="cpu",
        vocabulary_size=VOCABULARY,
        seed=0,
    )


@pytest.fixture(autouse=True)
def workers_end_with_their_engine() -> Iterator[None]:
    yield
    gc.collect()


def expected_logprobs(model: AutoModelForCausalLM, response: list[int]) -> np.ndarray:
    """Of a response to PROMPT, by transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *response]])).logits[0, len(PROMPT) - 1 : -1, :VOCABULARY]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def test_a_student_in_two_processes_takes_new_weights_while_it_draws(
    settings: EngineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token's log-probability is that of the weights of its version, whichever process holds them."""
    monkeypatch.setattr(shared_weights, "MEMORY", tmp_path)
    engine = GenerationEngine(settings, temperature=1.0, stop_token_ids=[])
    old, new = (AutoModelForCausalLM.from_pretrained(settings.model) for _ in range(2))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    engine.add("0", PROMPT, max_new_tokens=6, seed=1)
    for _ in range(3):
        assert engine.step() == []
    engine.load_weights(new.state_dict().items(), 7)
    finished = []
    while engine.has_unfinished():
        finished += engine.step()
    [sequence] = finished
    assert sequence.weight_version.tolist() == [0, 0, 0, 7, 7, 7]
    response = sequence.token_ids.tolist()
    expected = np.concatenate([expected_logprobs(old, response)[:3], expected_logprobs(new, response)[3:]])
    np.testing.assert_allclose(sequence.logprob, expected, atol=1e-4)
    assert not list(tmp_path.iterdir())


def make_room_for_the_first_stage(worker: Any) -> None:
    """Where the second stage receives what the first has computed; vLLM makes that on GPUs alone."""
    from vllm.distributed import get_pp_group

    runner = worker.model_runner
    if not get_pp_group().is_first_rank:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def test_a_teacher_in_two_stages_computes_what_transformers_does(settings: EngineSettings) -> None:
    """Whole, and on from what its cache holds of another sequence, in the middle of a block."""
    engine = PoolingEngine(replace(settings, tensor_parallel=1, pipeline_parallel=2))
    engine._engine.collective_rpc(make_room_for_the_first_stage)
    generator = np.random.default_rng(0)
    first, second = (generator.integers(VOCABULARY, size=100).tolist() for _ in range(2))
    second[:50] = first[:50]

    def rows(token_ids: list[int], num_known: int) -> HiddenRows:
        engine.add("0", token_ids, num_known=num_known)
        finished = []
        while engine.has_unfinished():
            finished += engine.step()
        [found] = finished
        return found

    for token_ids, num_known in ((first, 0), (second, 50)):
        found = rows(token_ids, num_known)
        assert found.first == num_known
        expected = reference(settings.model, token_ids, dtype=torch.float32, vocabulary_size=VOCABULARY).hidden
        torch.testing.assert_close(found.hidden, expected[num_known:], atol=5e-5, rtol=0.0)


def test_a_teacher_in_two_processes_passes_the_probe(settings: EngineSettings) -> None:
    """Its hidden states, read from its cache and not, are those of transformers."""
    spec = TeacherSpec(settings, "vllm", "hidden", payload_top_k=3, sampling=Sampling(), probe_max_gb=1.0)

    async def facts() -> TeacherFacts:
        return await TeacherReplica(spec).ready()

    probe = asyncio.run(facts()).probe
    assert probe.compared_with == "transformers"
    assert probe.largest_nats < 1e-4
