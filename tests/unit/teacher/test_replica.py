"""A replica built from its specification, on the fallback engine: probed before it serves, then as specified."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from scripted.models import VOCABULARY, tiny, word_tokenizer

from minillm_ray.config import InputError
from minillm_ray.data.trajectory import HiddenPayload, SampledPayload, TopKPayload, Trajectory
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.model_folder import save_model_folder
from minillm_ray.engines.transformers_hidden import reference
from minillm_ray.mixture.exchange import Proposal
from minillm_ray.teacher import replica as replica_module
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.replica import TeacherReplica, TeacherSpec

Answer = TypeVar("Answer")

PROMPT, RESPONSE = [1, 2, 3], [4, 5, 6, 7]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TeacherSpec:
    """Of a tiny model, on transformers."""
    folder = tmp_path_factory.mktemp("replica") / "teacher"
    save_model_folder(tiny("llama"), word_tokenizer(), Path(folder))
    settings = EngineSettings(
        model=str(folder),
        dtype="float32",
        max_model_tokens=64,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=VOCABULARY,
        seed=0,
    )
    return TeacherSpec(
        settings, engine="transformers", payload="hidden", payload_top_k=3, sampling=Sampling(0.8), probe_max_gb=1.0
    )


def served(spec: TeacherSpec, use: Callable[[TeacherReplica], Awaitable[Answer]]) -> Answer:
    async def body() -> Answer:
        replica = TeacherReplica(spec)
        await replica.ready()
        return await use(replica)

    return asyncio.run(body())


def trajectory() -> Trajectory:
    return Trajectory(
        prompt_index=0,
        prompt_ids=np.array(PROMPT, dtype=np.int32),
        response_ids=np.array(RESPONSE, dtype=np.int32),
        sampler_logprob=np.zeros(len(RESPONSE), dtype=np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(len(RESPONSE), dtype=np.int32),
        truncated=False,
    )


def expected_logprobs(spec: TeacherSpec) -> torch.Tensor:
    """[n, V] at the temperature of the specification."""
    found = reference(spec.settings.model, [*PROMPT, *RESPONSE], dtype=torch.float32, vocabulary_size=VOCABULARY)
    return (found.logits[len(PROMPT) - 1 : -1] / spec.sampling.temperature).log_softmax(-1)


@pytest.mark.parametrize(
    ("payload", "kind"), [("hidden", HiddenPayload), ("topk", TopKPayload), ("sampled", SampledPayload)]
)
def test_a_payload_is_of_the_kind_that_is_specified(payload: str, kind: type, spec: TeacherSpec) -> None:
    """And its size is reported."""
    report, found = served(replace(spec, payload=payload), lambda one: one.score(trajectory(), None))
    assert type(found) is kind
    assert report.payload_bytes == found.nbytes
    if not isinstance(found, HiddenPayload):
        tokens = torch.tensor(RESPONSE)[:, None]
        np.testing.assert_allclose(
            found.token_logprob, expected_logprobs(spec).gather(1, tokens)[:, 0].numpy(), atol=1e-5
        )
    if isinstance(found, TopKPayload):
        assert found.ids.shape == (len(RESPONSE), spec.payload_top_k)


def test_an_exact_payload_is_hidden_states_whatever_is_specified(spec: TeacherSpec) -> None:
    """As a held-out divergence needs them."""
    _, found = served(replace(spec, payload="sampled"), lambda one: one.score(trajectory(), None, exact=True))
    assert type(found) is HiddenPayload


def test_verdicts_are_at_the_specified_temperature_and_truncation(spec: TeacherSpec) -> None:
    """While payloads are never truncated."""
    truncated = replace(spec, sampling=Sampling(0.8, top_k=4))
    falls = Proposal(np.array([*PROMPT, *RESPONSE], dtype=np.int32), len(PROMPT), 0, np.full(4, np.inf, np.float32))
    verdict = served(truncated, lambda one: one.extend("s", falls))
    best = expected_logprobs(spec)[0].topk(4)
    assert np.flatnonzero(np.isfinite(verdict.row)).tolist() == sorted(best.indices.tolist())


def test_ready_says_what_the_probe_found_and_answers_twice(spec: TeacherSpec) -> None:
    """The second time from memory."""

    async def twice() -> list[object]:
        replica = TeacherReplica(spec)
        return [await replica.ready(), await replica.ready()]

    first, second = asyncio.run(twice())
    assert first is second
    assert first.block_tokens == 1
    assert first.probe.compared_with == "transformers"


@pytest.mark.parametrize(
    "changes", [{"probe_max_gb": 1e-6}, {"quantization": "fp8"}], ids=["too large", "quantised weights"]
)
def test_a_model_that_transformers_cannot_repeat_is_compared_with_itself(changes: dict, spec: TeacherSpec) -> None:
    """Too large for a second copy, or quantised: other numbers in another library."""
    if "quantization" in changes:
        changed = replace(spec, settings=replace(spec.settings, **changes))
    else:
        changed = replace(spec, **changes)

    async def ready(replica: TeacherReplica) -> str:
        return (await replica.ready()).probe.compared_with

    assert served(changed, ready) == "itself"


def test_a_head_that_is_not_the_models_keeps_a_replica_from_serving(
    spec: TeacherSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first caller learns it, before any response is scored."""
    load = replica_module.load_head

    def other(*arguments: object, **named: object) -> object:
        head = load(*arguments, **named)
        return replace(head, weight=head.weight.roll(1, 0))

    monkeypatch.setattr(replica_module, "load_head", other)
    with pytest.raises(InputError, match="an output head that is missing"):
        served(spec, lambda one: one.ready())


def test_an_engine_that_cannot_be_built_fails_every_call(spec: TeacherSpec) -> None:
    """With its own error, and at once."""
    missing = replace(spec, settings=replace(spec.settings, model="/nowhere"))
    with pytest.raises(Exception, match="nowhere"):
        served(missing, lambda one: one.ready())
