"""The teacher on real vLLM: what a session collects is what one pass computes, and both are what transformers has."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import ray
import torch
from scripted.models import VOCABULARY, save_tiny_folder

from minillm_ray.config import InputError
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.engines.pooling import PoolingEngine
from minillm_ray.engines.transformers_hidden import TransformersEngine
from minillm_ray.mixture.exchange import Proposal
from minillm_ray.teacher.actor import TeacherActor
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.replica import TeacherFacts, TeacherReplica, TeacherSpec
from minillm_ray.teacher.scorer import TeacherReport

Answer = TypeVar("Answer")

BLOCK = 32
MAX_TOKENS = 256
FEW_BLOCKS = {"num_gpu_blocks_override": 20, "max_num_batched_tokens": 64, "max_num_seqs": 8}
"""A cache of 640 tokens, in which sessions displace each other, and prompts that are computed in parts."""
TOLERANCE = 1e-5
"""Between two passes of one engine, whose rows are of size 1 to 3."""
ACROSS_LIBRARIES = 5e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    sizes = {"hidden_size": 64, "layers": 2, "intermediate_size": 128, "max_position_embeddings": MAX_TOKENS}
    save_tiny_folder(folder, words=tuple(f"<{k}>" for k in range(VOCABULARY)), **sizes)
    return str(folder)


@pytest.fixture(scope="module")
def settings(model: str) -> EngineSettings:
    """Engines are built in this process, as in an actor's."""
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    return EngineSettings(
        model=model,
        dtype="float32",
        max_model_tokens=MAX_TOKENS,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=VOCABULARY,
        seed=0,
        arguments={"num_gpu_blocks_override": 200},
    )


@pytest.fixture(scope="module")
def spec(settings: EngineSettings) -> TeacherSpec:
    return TeacherSpec(
        settings, engine="vllm", payload="hidden", payload_top_k=3, sampling=Sampling(), probe_max_gb=1.0
    )


def served(spec: TeacherSpec, use: Callable[[TeacherReplica], Awaitable[Answer]]) -> Answer:
    async def body() -> Answer:
        replica = TeacherReplica(spec)
        await replica.ready()
        return await use(replica)

    return asyncio.run(body())


def sequences(seed: int, count: int, num_prompt: int, num_response: int) -> list[Trajectory]:
    """Random responses to one prompt, whose first ten tokens are the same."""
    generator = np.random.default_rng(seed)
    prompt = generator.integers(VOCABULARY, size=num_prompt)
    beginning = generator.integers(VOCABULARY, size=10)
    return [
        trajectory(prompt, np.concatenate([beginning, generator.integers(VOCABULARY, size=num_response - 10)]))
        for _ in range(count)
    ]


def trajectory(prompt: Any, response: Any) -> Trajectory:
    count = len(response)
    return Trajectory(
        prompt_index=0,
        prompt_ids=np.asarray(prompt, dtype=np.int32),
        response_ids=np.asarray(response, dtype=np.int32),
        sampler_logprob=np.zeros(count, dtype=np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(count, dtype=np.int32),
        truncated=True,
    )


class Drawn(NamedTuple):
    """corrections: proposed tokens that fell; in_vain: those that the engine was fed, and what was fed behind them."""

    corrections: int
    in_vain: int


async def draw(replica: TeacherReplica, session: str, wanted: Trajectory, seed: int, rate: float) -> Drawn:
    """As a mixed response is drawn: proposals of up to 32 tokens, of which tokens fall with chance `rate`.

    Where a token falls the student had proposed another than the wanted one.
    """
    generator = np.random.default_rng(seed)
    num_prompt, response = len(wanted.prompt_ids), wanted.response_ids
    start = corrections = in_vain = 0
    while start < len(response):
        end = min(len(response), start + BLOCK)
        falls = np.flatnonzero(generator.random(end - start) < rate)
        proposed, threshold = response[start:end].copy(), np.full(end - start, -np.inf, dtype=np.float32)
        if len(falls):
            proposed[falls[0]] = (proposed[falls[0]] + 1) % VOCABULARY
            threshold[falls[0]] = np.inf
        token_ids = np.concatenate([wanted.prompt_ids, response[:start], proposed])
        verdict = await replica.extend(session, Proposal(token_ids, num_prompt, start, threshold))
        standing = len(verdict.teacher_logprob)
        assert (verdict.row is None) == (len(falls) == 0)
        assert standing == (falls[0] if len(falls) else end - start)
        corrections += len(falls) > 0
        in_vain += end - 1 - (start + standing) if len(falls) else 0
        start += standing + (verdict.row is not None)
    return Drawn(corrections, in_vain)


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    return float((left - right).abs().max())


@pytest.mark.parametrize("arguments", [{"num_gpu_blocks_override": 200}, FEW_BLOCKS], ids=["roomy", "few blocks"])
def test_rows_are_transformers_own_whatever_the_cache_holds(arguments: dict, settings: EngineSettings) -> None:
    """Rows of exactly the tokens that the cache did not have, under prefill in parts and displacement too.

    What the cache has is read to the last token that need not be computed, also where that lies inside a block.
    """
    engine = PoolingEngine(replace(settings, arguments=arguments))
    all_ids = [one.token_ids.tolist() for one in sequences(1, 6, 37, 180)] + [[5], list(range(40))]
    expected = TransformersEngine(settings).hidden_states(all_ids)
    for again, num_known in enumerate((300, 300, 3 * BLOCK, 70, 3, 300)):
        for number, ids in enumerate(all_ids):
            engine.add(str(number), ids, num_known=num_known)
        while engine.has_unfinished():
            for rows in engine.step():
                ids = all_ids[int(rows.request_id)]
                assert rows.first <= min(num_known, len(ids) - 1)
                if again and arguments is not FEW_BLOCKS:
                    assert rows.first == min(num_known, len(ids) - 1)
                assert largest_difference(rows.hidden, expected[int(rows.request_id)][rows.first :]) < ACROSS_LIBRARIES
    for found, wanted in zip(engine.hidden_states(all_ids), expected, strict=True):
        assert largest_difference(found, wanted) < ACROSS_LIBRARIES
    assert engine.block_tokens == BLOCK


def test_of_a_request_that_was_aborted_only_what_was_computed_is_read(settings: EngineSettings) -> None:
    """Of the third of its blocks that is a half."""
    engine = PoolingEngine(replace(settings, arguments=FEW_BLOCKS | {"max_num_batched_tokens": 80}))
    ids = sequences(5, 1, 37, 180)[0].token_ids.tolist()
    engine.add("aborted", ids)
    assert engine.step() == []
    engine.abort(["aborted"])
    engine.add("whole", ids, num_known=200)
    while engine.has_unfinished():
        for rows in engine.step():
            assert rows.first == 80
            (expected,) = TransformersEngine(settings).hidden_states([ids])
            assert largest_difference(rows.hidden, expected[rows.first :]) < ACROSS_LIBRARIES


def test_a_model_whose_tokens_attend_to_a_window_reads_whole_blocks(settings: EngineSettings, tmp_path: Path) -> None:
    """What a block is good for depends on those before it there; and none is read of rows that are asked for."""
    sizes = {"hidden_size": 64, "layers": 2, "intermediate_size": 128, "max_position_embeddings": MAX_TOKENS}
    words = tuple(f"<{k}>" for k in range(VOCABULARY))
    save_tiny_folder(tmp_path / "model", architecture="mistral", words=words, **sizes)
    windowed = replace(settings, model=str(tmp_path / "model"))
    engine = PoolingEngine(windowed)
    all_ids = [one.token_ids.tolist() for one in sequences(1, 2, 37, 180)]
    expected = TransformersEngine(windowed).hidden_states(all_ids)
    for num_known, first in ((0, 0), (216, 192), (100, 0)):
        for number, ids in enumerate(all_ids):
            engine.add(str(number), ids, num_known=num_known)
        while engine.has_unfinished():
            for rows in engine.step():
                assert rows.first == first
                assert largest_difference(rows.hidden, expected[int(rows.request_id)][rows.first :]) < ACROSS_LIBRARIES


@pytest.mark.parametrize("arguments", [{"num_gpu_blocks_override": 200}, FEW_BLOCKS], ids=["roomy", "few blocks"])
def test_a_sessions_hidden_states_are_those_of_one_pass(arguments: dict, spec: TeacherSpec) -> None:
    """Six at once to one prompt, with the same first tokens and corrections inside blocks; no second pass is made."""
    wanted = sequences(2, 6, 45, 150)

    async def use(replica: TeacherReplica) -> list[tuple[torch.Tensor, torch.Tensor]]:
        await asyncio.gather(*(draw(replica, str(k), one, k, 0.05) for k, one in enumerate(wanted)))
        before = replica.report().requests
        collected = [await replica.score(one, str(k)) for k, one in enumerate(wanted)]
        assert replica.report().requests == before
        passed = [await replica.score(one, None) for one in wanted]
        return [(decode_hidden(a), decode_hidden(b)) for (_, a), (_, b) in zip(collected, passed, strict=True)]

    changed = replace(spec, settings=replace(spec.settings, arguments=arguments))
    expected = TransformersEngine(spec.settings).hidden_states([one.token_ids[:-1].tolist() for one in wanted])
    for (session, alone), reference, one in zip(served(changed, use), expected, wanted, strict=True):
        assert largest_difference(session, alone) < TOLERANCE
        assert largest_difference(session, reference[len(one.prompt_ids) - 1 :]) < ACROSS_LIBRARIES


def test_of_a_proposal_the_engine_computes_no_token_that_stood_before(spec: TeacherSpec) -> None:
    """Corrections fall inside blocks; what is computed twice are the proposed tokens that came after them."""
    (wanted,) = sequences(3, 1, 45, 200)

    async def use(replica: TeacherReplica) -> tuple[Drawn, int]:
        drawn = await draw(replica, "s", wanted, 3, 0.04)
        report, _ = await replica.score(wanted, "s")
        return drawn, report.engine_tokens

    drawn, computed = served(spec, use)
    assert drawn.corrections > 3
    # A proposal's last token is never fed with it; the corrected token of each is fed once more, with the next one.
    assert computed == len(wanted.token_ids) - 1 + drawn.in_vain


def test_a_cancelled_verdict_leaves_the_engine_to_the_others(spec: TeacherSpec) -> None:
    """A response that is given up: its request is aborted, and the next one is judged."""
    first, second = sequences(4, 2, 45, 60)

    async def use(replica: TeacherReplica) -> int:
        drawing = asyncio.create_task(draw(replica, "a", first, 0, 0.5))
        await asyncio.sleep(0)
        drawing.cancel()
        replica.forget("a")
        await draw(replica, "b", second, 0, 0.0)
        return (await replica.score(second, "b"))[0].response_tokens

    assert served(spec, use) == 60


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_compares_vllm_with_transformers(dtype: str, spec: TeacherSpec) -> None:
    """Both dtypes pass, each within its own tolerance."""
    changed = replace(spec, settings=replace(spec.settings, dtype=dtype))

    async def use(replica: TeacherReplica) -> tuple[TeacherFacts, TeacherReport]:
        return await replica.ready(), replica.report()

    facts, report = served(changed, use)
    assert (facts.probe.compared_with, facts.block_tokens) == ("transformers", BLOCK)
    # 63 tokens proposed, of which the last was another; then what follows the 62, and 95 in one pass.
    assert (report.requests, report.engine_tokens) == (3, 63 + (95 - 62) + 95)
    assert facts.probe.relative_error < {"float32": 2e-5, "bfloat16": 5e-2}[dtype]


def test_a_model_that_vllm_refuses_names_the_fallback(settings: EngineSettings, tmp_path: Path) -> None:
    """One line: the model, vLLM's reason, and the other engine, which takes the folder."""
    folder = tmp_path / "unknown"
    shutil.copytree(settings.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysForCausalLM"]}))
    refused = replace(settings, model=str(folder))
    with pytest.raises(InputError) as caught:
        PoolingEngine(refused)
    message = str(caught.value)
    assert message.startswith(f"{folder}: vLLM's pooling engine refuses this model: Model architectures ['Nobodys")
    assert "teacher.engine=transformers" in message
    assert "\n" not in message
    assert TransformersEngine(refused).hidden_states([[1, 2]])[0].shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_num_seq", "Did you mean max_num_seqs?"),
        ("runner", "to 'pooling', and relies on it"),
        ("enable_prefix_caching", "to True, and relies on it"),
        ("tensor_parallel_size", "to 1, and relies on it"),
    ],
)
def test_engine_arguments_are_checked_against_the_installed_vllm(
    name: str, says: str, settings: EngineSettings
) -> None:
    """A typo, and what the teacher sets itself."""
    with pytest.raises(InputError) as caught:
        PoolingEngine(replace(settings, arguments={name: 1}))
    assert f"teacher.engine_arguments.{name}" in str(caught.value)
    assert says in str(caught.value)


@pytest.fixture
def one_cpu_cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("one_cpu_cluster")
def test_an_actor_serves_while_it_computes(spec: TeacherSpec, tmp_path: Path) -> None:
    """Verdicts, a payload as a second return, and signs of life, through Ray."""
    environment = engine_environment(device="cpu", threads=1, kv_cache_gib=1.0)
    actor = TeacherActor.options(num_cpus=1, runtime_env={"env_vars": environment}).remote(
        spec, log_file=tmp_path / "teacher.log"
    )
    assert ray.get(actor.ping.remote(), timeout=120).seconds_since_progress >= 0.0
    facts = ray.get(actor.ready.remote(), timeout=120)
    assert facts.probe.compared_with == "transformers"
    (one,) = sequences(5, 1, 45, 60)
    whole = Proposal(one.token_ids, 45, 0, np.full(60, -np.inf, dtype=np.float32))
    begun = Proposal(one.token_ids[: 45 + 7], 45, 0, np.full(7, -np.inf, dtype=np.float32))
    verdicts = ray.get(actor.extend.remote([("s", whole), ("t", begun)]), timeout=60)
    assert [len(verdict.teacher_logprob) for verdict in verdicts] == [60, 7]
    report, payload = actor.score.remote(ray.put(one), "s")
    assert ray.get(report, timeout=60).requests == 1
    assert ray.get(payload, timeout=60).data.shape == (60, 64)
    ray.get([actor.forget.remote(session) for session in ("s", "t")], timeout=60)
    assert ray.get(actor.report.remote(), timeout=60).open_sessions == 0
    ray.kill(actor)
