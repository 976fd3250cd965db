"""The sampling engine on real vLLM: what a response depends on, and what it does not."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm_ray.data import write_embedded
from minillm_ray.engines.embedded_models import write_embedded_model
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings, GeneratedSequence, GenerationEngine

VOCABULARY = 500  # the head has 512 rows: the last ones stand for padding
NUM_NEW_TOKENS = 6

Sequences = dict[int, GeneratedSequence]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained embedded student, tied."""
    folder = tmp_path_factory.mktemp("engine") / "embedded"
    write_embedded(folder, num_train=40, num_held_out=8, vocab_size=512, seed=0)
    write_embedded_model("student", folder / "tokenizer", folder / "student", 0)
    return folder / "student"


@pytest.fixture(scope="module")
def settings(folder: Path) -> EngineSettings:
    """For this process, as for an actor's."""
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    return EngineSettings(
        model=str(folder),
        dtype="float32",
        max_model_tokens=128,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=VOCABULARY,
        seed=0,
    )


@pytest.fixture(scope="module")
def engine(settings: EngineSettings) -> GenerationEngine:
    return GenerationEngine(settings, temperature=0.9, stop_token_ids=[0])


@pytest.fixture(scope="module")
def small_engine(settings: EngineSettings) -> GenerationEngine:
    """Its cache holds three whole sequences. Lives on: an engine that ends takes what others of the process share."""
    arguments = {"num_gpu_blocks_override": 14}
    return GenerationEngine(replace(settings, arguments=arguments), temperature=0.9, stop_token_ids=[0])


def drain(
    engine: GenerationEngine,
    prompts: dict[int, list[int]],
    steps: int | None = None,
    keep_rows: Collection[int] = (),
    num_new_tokens: int = NUM_NEW_TOKENS,
) -> dict[int, GeneratedSequence]:
    """Sample a response to each prompt, seeded by its number; with `steps`, stop after so many engine steps."""
    for number, prompt in prompts.items():
        engine.add(str(number), prompt, max_new_tokens=num_new_tokens, seed=1000 + number, keep_rows=keep_rows)
    return finish(engine, steps)


def finish(engine: GenerationEngine, steps: int | None = None) -> Sequences:
    done: Sequences = {}
    while engine.has_unfinished() and (steps is None or steps > 0):
        done |= {int(sequence.request_id): sequence for sequence in engine.step()}
        steps = None if steps is None else steps - 1
    return done


def prompts(count: int, length: int = 100) -> dict[int, list[int]]:
    generator = np.random.default_rng(0)
    return {number: generator.integers(1, VOCABULARY, length).tolist() for number in range(count)}


def expected_rows(model: AutoModelForCausalLM, prompt: list[int], sequence: GeneratedSequence) -> torch.Tensor:
    """[n, V] of every token, at the sampling temperature and without the padding rows, by transformers."""
    ids = torch.tensor([*prompt, *sequence.token_ids.tolist()])[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    return (logits / 0.9).log_softmax(-1)


def expected_logprobs(model: AutoModelForCausalLM, prompt: list[int], sequence: GeneratedSequence) -> np.ndarray:
    """Of the drawn tokens."""
    logprobs = expected_rows(model, prompt, sequence)
    return logprobs.gather(1, torch.tensor(sequence.token_ids, dtype=torch.long)[:, None])[:, 0].numpy()


def test_more_prompts_than_one_step_takes_are_all_answered_as_if_each_were_alone(engine: GenerationEngine) -> None:
    """More tokens than one step reads, so that a prompt is read in parts; a response depends on its seed alone."""
    many = prompts(60)
    together = drain(engine, many)
    assert sorted(together) == sorted(many)
    for number in (0, 31, 59):
        alone = drain(engine, {number: many[number]})[number]
        assert alone.token_ids.tolist() == together[number].token_ids.tolist()


def test_a_response_taken_up_in_its_middle_goes_on_as_it_would_have(engine: GenerationEngine) -> None:
    """Slot t is drawn by number t of the seed, in whichever request it comes."""
    for number, prompt in prompts(8).items():
        whole = drain(engine, {number: prompt})[number].token_ids.tolist()
        for first_slot in range(1, len(whole)):
            engine.add(
                str(number),
                prompt + whole[:first_slot],
                max_new_tokens=NUM_NEW_TOKENS - first_slot,
                seed=1000 + number,
                first_slot=first_slot,
            )
            assert finish(engine)[number].token_ids.tolist() == whole[first_slot:]


def test_reported_logprobs_are_those_of_the_tempered_distribution_without_padding(
    engine: GenerationEngine, folder: Path
) -> None:
    """log q at temperature 0.9 over the tokenizer's ids; no padding row is ever drawn."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for number, sequence in drain(engine, prompts(8)).items():
        assert sequence.token_ids.max() < VOCABULARY
        assert sequence.drawn_logprob is sequence.logprob and sequence.rows == {}
        np.testing.assert_allclose(sequence.logprob, expected_logprobs(model, prompts(8)[number], sequence), atol=1e-4)


def test_a_request_in_flight_goes_on_with_the_new_weights_and_keeps_what_the_old_ones_drew(
    engine: GenerationEngine, folder: Path
) -> None:
    """Three tokens of version 0, then new weights: later tokens and their kept rows are exact under them, and each
    knows its version."""
    old = AutoModelForCausalLM.from_pretrained(folder)
    new = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    prompt = prompts(1)
    assert drain(engine, prompt, steps=3, keep_rows=range(NUM_NEW_TOKENS)) == {}
    engine.load_weights(new.state_dict().items(), 7)
    sequence = finish(engine)[0]
    drawn_by_new = sequence.weight_version == 7
    assert drawn_by_new.tolist() == [False] * 3 + [True] * (len(sequence.token_ids) - 3)
    for model, chosen in ((old, ~drawn_by_new), (new, drawn_by_new)):
        expected = expected_logprobs(model, prompt[0], sequence)
        np.testing.assert_allclose(sequence.logprob[chosen], expected[chosen], atol=1e-4)
        rows = expected_rows(model, prompt[0], sequence)
        for offset in np.flatnonzero(chosen):
            np.testing.assert_allclose(sequence.rows[offset].logprob, rows[offset], atol=1e-5)
    assert sorted(sequence.rows) == list(range(len(sequence.token_ids)))
    engine.load_weights(old.state_dict().items(), 0)


def test_what_goes_on_from_an_ended_request_computes_its_new_token_alone(
    engine: GenerationEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a corrected response does. It disturbs no other that goes on from the same tokens, at once or later."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    num_cached = watch_the_cache(engine, monkeypatch)
    (prompt,) = prompts(1).values()
    drawn = drain(engine, {0: prompt})[0].token_ids.tolist()
    others = [token for token in range(1, 6) if token not in (drawn[-1], prompt[40])]
    corrected = {number: [*prompt, *drawn[:-1], others[number % 3]] for number in (1, 2, 3, 4)}
    sequences = drain(engine, {1: corrected[1]}) | drain(engine, {2: corrected[2]})
    assert num_cached["1"] == num_cached["2"] == len(corrected[1]) - 1
    corrected[5] = [*prompt[:40], others[-1]]
    corrected[6] = [*corrected[2], *sequences[2].token_ids.tolist()[:-1], others[0]]
    assert drain(engine, {3: corrected[3], 5: corrected[5]}, steps=1) == {}
    sequences |= drain(engine, {4: corrected[4], 6: corrected[6]})
    for number, sequence in sequences.items():
        expected = expected_logprobs(model, corrected[number], sequence)
        np.testing.assert_allclose(sequence.logprob, expected, atol=1e-4)


def test_nothing_that_old_weights_computed_is_read_under_new_ones(
    engine: GenerationEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither whole blocks nor the part of one."""
    new = AutoModelForCausalLM.from_pretrained(folder)
    old = new.state_dict()
    num_cached = watch_the_cache(engine, monkeypatch)
    (prompt,) = prompts(1).values()
    drain(engine, {0: prompt})
    engine.load_weights({name: tensor + 0.05 for name, tensor in old.items()}.items(), 7)
    drain(engine, {1: prompt[:20], 2: prompt})
    assert num_cached["1"] == num_cached["2"] == 0
    engine.load_weights(old.items(), 0)


def test_responses_are_the_same_where_the_cache_is_too_small_for_all(
    engine: GenerationEngine, small_engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are put off and taken up again, and their blocks go to others. Others go on where they ended, with
    the last token that was drawn, of which nothing is computed, or with another in its place."""
    put_off = []
    scheduler = small_engine._engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request
    monkeypatch.setattr(
        scheduler, "_preempt_request", lambda *given, **named: put_off.append(given) or preempt(*given, **named)
    )
    asked = prompts(12, length=30)
    for _ in range(3):
        expected, found = (drain(one, asked, num_new_tokens=30) for one in (engine, small_engine))
        assert sorted(found) == sorted(asked)
        for number, sequence in found.items():
            assert sequence.token_ids.tolist() == expected[number].token_ids.tolist()
            np.testing.assert_allclose(sequence.logprob, expected[number].logprob, atol=1e-4)
        drawn = {number: sequence.token_ids.tolist() for number, sequence in found.items()}
        asked = {number: [*asked[number], *(ids if number % 2 else ids[:-1]), 7] for number, ids in drawn.items()}
    assert put_off


def watch_the_cache(engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """By request id, of those that end from now on: how many of its first tokens vLLM read from its cache."""
    num_cached: dict[str, int] = {}
    step = engine._engine.step

    def watched() -> list:
        outputs = step()
        num_cached.update({output.request_id: output.num_cached_tokens for output in outputs if output.finished})
        return outputs

    monkeypatch.setattr(engine._engine, "step", watched)
    return num_cached


def test_rows_come_where_they_were_asked_for_and_are_then_forgotten(engine: GenerationEngine, folder: Path) -> None:
    """Whole rows without the padding, within 1e-5 of transformers; those of finished and aborted requests are gone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    engine.add("without", prompts(1)[0], max_new_tokens=NUM_NEW_TOKENS, seed=0)
    engine.add("aborted", prompts(1)[0], max_new_tokens=NUM_NEW_TOKENS, seed=0, keep_rows=[0])
    for number, prompt in prompts(8).items():
        engine.add(str(number), prompt, max_new_tokens=NUM_NEW_TOKENS, seed=1000 + number, keep_rows=[1, number % 4])
    sequences = {sequence.request_id: sequence for sequence in engine.step()}
    engine.abort(["aborted"])
    while engine.has_unfinished():
        sequences |= {sequence.request_id: sequence for sequence in engine.step()}
    assert sequences.pop("without").rows == {}
    for request_id, sequence in sequences.items():
        number = int(request_id)
        rows = expected_rows(model, prompts(8)[number], sequence)
        assert set(sequence.rows) == {1, number % 4} & set(range(len(sequence.token_ids)))
        for offset, row in sequence.rows.items():
            assert row.logprob.dtype == np.float32 and row.drawn_logprob is row.logprob
            np.testing.assert_allclose(row.logprob, rows[offset], atol=1e-5)
    from minillm_ray.engines.drawing import _RECORDS

    assert len(sequences) == 8 and not _RECORDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation_in_c_is_the_one_of_pytorch_and_is_chosen(engine: GenerationEngine, dtype: torch.dtype) -> None:
    """Also where the kernels cannot be had: rows with gaps between them, or no weight."""
    from vllm import ir

    from minillm_ray.engines.cpu_normalization import OPERATORS, PROVIDER

    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(6, 2, 128, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(128, generator=generator).to(dtype)
    expected = {operator: getattr(ir.ops, operator).impls["native"].impl_fn for operator in OPERATORS}
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for operator in OPERATORS:
        assert getattr(ir.ops, operator).get_priority()[0] == PROVIDER
    for rows, scale in ((x, weight), (x[:, 0, :64], weight[:64]), (x, None)):
        torch.testing.assert_close(
            ir.ops.rms_norm(rows, scale, 1e-5), expected["rms_norm"](rows, scale, 1e-5), **tolerance
        )
        others = residual[:, 0, :64] if rows.dim() == 2 else residual
        made = ir.ops.fused_add_rms_norm(rows, others, scale, 1e-5)
        torch.testing.assert_close(made, expected["fused_add_rms_norm"](rows, others, scale, 1e-5), **tolerance)


def test_vllms_second_model_runner_stays_out_where_it_would_be_chosen(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the logits processors that draw. vLLM chooses it wherever Triton works, as on every GPU."""
    from vllm import envs
    from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors_params_validator

    from minillm_ray.engines.drawing import DrawTokens

    with pytest.raises(ValueError, match="DrawTokens is not a subclass"):
        build_custom_logits_processors_params_validator([DrawTokens])
    config = engine._engine.vllm_config
    envs.disable_envs_cache()
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    assert config.use_v2_model_runner
    for name, value in engine_environment(device="gpu", threads=1, kv_cache_gib=1.0).items():
        monkeypatch.setenv(name, value)
    assert not config.use_v2_model_runner
