"""Mixed sampling with the student in a real vLLM engine, truncated and at a temperature, and a teacher of transformers.

New weights come while the responses are drawn; transformers then says what each token's distributions were.
"""

import asyncio
import os
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted.lock_step import sampled_distribution
from scripted.models import tiny

from minillm_ray.data.sets import PromptSet, lay_end_to_end
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings, GeneratedSequence, GenerationEngine
from minillm_ray.engines.loop import EngineLoop
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.mixture.sampler import MixtureSettings
from minillm_ray.rollout.worker import RolloutWorker, SamplingEngine

VOCABULARY, EOS = 60, 0  # the heads have 64 rows: the last ones stand for padding
ALPHA, BLOCK, LIMIT, NUM_PROMPTS = 0.3, 32, 40, 150
SAMPLING = {"temperature": 0.9, "top_k": 25, "top_p": 0.95}
ROUNDING = 1e-5  # of a running sum in float32: two engines may cut differently where top_p lies this close to one


def model(seed: int) -> Any:
    """Small, and with distributions that differ much from one seed to the next."""
    sizes = {"vocab_size": 64, "hidden_size": 64, "max_position_embeddings": 128}
    made = tiny("llama", seed=seed, **sizes).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(1.5)
    return made


STUDENTS, TEACHER = [model(1), model(2)], model(3)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> EngineLoop[SamplingEngine, GeneratedSequence]:
    """The engine in a thread of this process, as in an actor's."""
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    folder: Path = tmp_path_factory.mktemp("mixed") / "student"
    STUDENTS[0].save_pretrained(folder)
    settings = EngineSettings(
        model=str(folder),
        dtype="float32",
        max_model_tokens=128,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=VOCABULARY,
        seed=0,
    )
    return EngineLoop(lambda: GenerationEngine(settings, stop_token_ids=[EOS], **SAMPLING), name="student")


def prompt_set() -> PromptSet:
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 50, NUM_PROMPTS)
    token_ids, offsets = lay_end_to_end([generator.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths])
    nothing = tuple(() for _ in lengths)
    return PromptSet(token_ids, offsets, nothing, tuple("" for _ in lengths), 0, "")


async def verify(proposal: Proposal) -> Verdict:
    """One forward pass over the sequence; log p by the function that truncates the student's too."""
    token_ids, first = torch.tensor(proposal.token_ids, dtype=torch.int64), proposal.prompt_length + proposal.start
    with torch.no_grad():
        logits = TEACHER(token_ids[None, :-1]).logits[0, first - 1 :, :VOCABULARY]
    rows = log_probabilities(logits, *SAMPLING.values())
    logprob = rows.gather(1, token_ids[first:, None])[:, 0].numpy()
    fell = np.flatnonzero(~(logprob >= proposal.log_threshold))
    return Verdict(logprob[: fell[0]], rows[fell[0]].numpy()) if len(fell) else Verdict(logprob, None)


def respond_to_all(loop: EngineLoop, scheme: str) -> list[Trajectory]:
    """A response to each prompt; the student's weights change after three verdicts a response, on average."""
    mixture = MixtureSettings(alpha=ALPHA, scheme=scheme, proposal_tokens=BLOCK, stop_token_ids=(EOS,))
    worker = RolloutWorker(loop, {"train": prompt_set()}, max_response_tokens=LIMIT, seed=5, mixture=mixture)
    num_verdicts = 0

    async def verify_and_pull(proposal: Proposal) -> Verdict:
        nonlocal num_verdicts
        num_verdicts += 1
        if num_verdicts == 3 * NUM_PROMPTS:
            await worker.load_weights(STUDENTS[1].state_dict().items(), 1)
        return await verify(proposal)

    async def respond() -> list[Trajectory]:
        await worker.load_weights(STUDENTS[0].state_dict().items(), 0)
        answers = await asyncio.gather(
            *(worker.respond("train", index, draw=0, verify=verify_and_pull) for index in range(NUM_PROMPTS))
        )
        return [trajectory for trajectory, _ in answers]

    return asyncio.run(respond())


@dataclass(frozen=True)
class States:
    """float64 [n, V] at each token of a response: p, the q that drew it as truncated, and that q whole.

    certain: bool [n], whether rounding leaves the tokens that are cut from p and q as they are.
    """

    p: torch.Tensor
    q: torch.Tensor
    whole: torch.Tensor
    certain: torch.Tensor


def states(trajectory: Trajectory) -> States:
    ids = torch.tensor(trajectory.token_ids, dtype=torch.int64)[None, :-1]
    with torch.no_grad():
        teacher, *students = (
            each(ids).logits[0, len(trajectory.prompt_ids) - 1 :, :VOCABULARY] for each in (TEACHER, *STUDENTS)
        )
    version = torch.tensor(trajectory.weight_version)[:, None]
    drew = torch.where(version == 0, *students)
    return States(
        sampled_distribution(teacher, **SAMPLING),
        sampled_distribution(drew, **SAMPLING),
        sampled_distribution(drew, temperature=SAMPLING["temperature"]),
        _certain(teacher) & _certain(drew),
    )


def _certain(logits: torch.Tensor) -> torch.Tensor:
    fewer, more = (
        sampled_distribution(logits, **SAMPLING | {"top_p": SAMPLING["top_p"] + by}) for by in (-ROUNDING, ROUNDING)
    )
    return ((fewer > 0) == (more > 0)).all(-1)


@pytest.mark.parametrize("scheme", ["propose_verify", "handoff"])
def test_tokens_come_from_the_mixture_and_are_recorded_with_the_weights_that_drew_them(
    loop: EngineLoop, scheme: str
) -> None:
    """Recorded log-probabilities within 1e-4 of transformers', the mixture's wherever rounding does not decide which
    tokens are cut, and the score in alpha, summed over all tokens, is that of the mixture; a student alone would be
    twenty deviations out."""
    trajectories = respond_to_all(loop, scheme)
    versions = np.concatenate([trajectory.weight_version for trajectory in trajectories])
    assert min((versions == 0).mean(), (versions == 1).mean()) > 0.1
    assert any(len(set(trajectory.weight_version.tolist())) == 2 for trajectory in trajectories)
    total = drift = variance = 0.0
    num_certain = 0
    for trajectory in trajectories:
        at = states(trajectory)
        certain = at.certain.numpy()
        num_certain += int(certain.sum())
        tokens = torch.tensor(trajectory.response_ids, dtype=torch.int64)[:, None]
        mixture = ALPHA * at.p + (1 - ALPHA) * at.q
        for recorded, exact, where in (
            (trajectory.behavior_logprob, mixture, certain),
            (trajectory.sampler_logprob, at.whole, slice(None)),
        ):
            expected = exact.gather(1, tokens)[:, 0].log().numpy()
            np.testing.assert_allclose(recorded[where], expected[where], atol=1e-4)
        raw = torch.where(mixture > 0, (at.p - at.q) / mixture, 0.0)
        score = raw - (mixture * raw).sum(-1, keepdim=True)
        total += float(score.gather(1, tokens).sum())
        drift += float((at.q * score).sum())
        variance += float((mixture * score**2).sum())
        assert trajectory.truncated == (trajectory.response_ids[-1] != EOS)
    assert num_certain / len(versions) > 0.98
    assert drift / sqrt(variance) < -20
    assert abs(total / sqrt(variance)) < 3.3


def test_kept_rows_are_those_that_were_sampled_from(loop: EngineLoop) -> None:
    """Whole and truncated, within 1e-5 of transformers'; the untruncated log q beside the one that drew."""
    prompt = prompt_set().prompt(0).tolist()

    async def draw() -> GeneratedSequence:
        await loop.command(lambda engine: engine.load_weights(STUDENTS[0].state_dict().items(), 0))
        return await loop.request(
            lambda engine, request_id: engine.add(request_id, prompt, max_new_tokens=12, seed=0, keep_rows=range(12))
        )

    sequence = asyncio.run(draw())
    ids = torch.tensor([[*prompt, *sequence.token_ids.tolist()]])
    with torch.no_grad():
        logits = STUDENTS[0](ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    assert sorted(sequence.rows) == list(range(len(sequence.token_ids)))
    for offset, row in sequence.rows.items():
        token = sequence.token_ids[offset]
        whole = (logits[offset] / SAMPLING["temperature"]).log_softmax(-1).numpy()
        truncated = sampled_distribution(logits[offset : offset + 1], **SAMPLING)[0].log().numpy()
        np.testing.assert_allclose(row.logprob, whole, atol=1e-5, rtol=2e-6)
        np.testing.assert_allclose(row.drawn_logprob, truncated, atol=1e-5, rtol=2e-6)
        assert sequence.logprob[offset] == pytest.approx(whole[token], abs=1e-5)
        assert sequence.drawn_logprob[offset] == pytest.approx(truncated[token], abs=1e-5)
