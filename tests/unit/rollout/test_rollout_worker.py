"""A rollout worker answers each prompt with a draw that depends on nothing but what it must, alone or mixed."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted.mixture_laws import EOS, Law, sharp
from scripted.roles import ScriptedSamplingEngine
from scripted.tiny_engines import Sampling, TinyStudent, TinyTeacher

from minillm_ray.data.sets import PromptSet, lay_end_to_end
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.loop import EngineLoop, Together
from minillm_ray.mixture.exchange import Proposal, Verdict, Verify
from minillm_ray.mixture.sampler import MixtureSettings, SamplingCounts
from minillm_ray.rollout.worker import RolloutWorker, request_seed, respond_to_all


def prompt_set(*prompts: list[int]) -> PromptSet:
    token_ids, offsets = lay_end_to_end([np.array(prompt, dtype=np.int32) for prompt in prompts])
    nothing = tuple(() for _ in prompts)
    return PromptSet(token_ids, offsets, nothing, tuple("" for _ in prompts), 0, "")


PROMPTS = {"train": prompt_set([5], [6, 6], [7, 7, 7]), "held_out": prompt_set([8, 9])}


def make_worker(*, seed: int = 1, limit: int = 50) -> tuple[RolloutWorker, ScriptedSamplingEngine]:
    engine = ScriptedSamplingEngine()
    loop: Any = EngineLoop(lambda: engine, name="test")
    return RolloutWorker(loop, PROMPTS, max_response_tokens=limit, seed=seed), engine


def test_responses_come_in_the_order_of_the_prompts() -> None:
    """Whatever the order in which the engine finishes them; a prompt may be asked for twice."""
    worker, engine = make_worker()
    trajectories = respond_to_all(worker, "train", [2, 0, 2], draw=4)
    assert [trajectory.prompt_index for trajectory in trajectories] == [2, 0, 2]
    assert [trajectory.prompt_ids.tolist() for trajectory in trajectories] == [[7, 7, 7], [5], [7, 7, 7]]
    assert [len(trajectory.response_ids) for trajectory in trajectories] == [1, 2, 3]
    assert [request[1] for request in engine.requests] == [[7, 7, 7], [5], [7, 7, 7]]


def test_no_prompts_are_no_work() -> None:
    """A share may be empty."""
    worker, engine = make_worker()
    assert respond_to_all(worker, "train", [], draw=0) == []
    assert engine.requests == []


def test_a_trajectory_holds_what_the_engine_drew_and_nothing_else() -> None:
    """Ids, log-probabilities, versions and the truncation as they came; no mixture took part."""
    worker, engine = make_worker()
    _, trajectory = respond_to_all(worker, "train", [0, 1], draw=0)
    seed = engine.requests[1][3]
    assert trajectory.response_ids.tolist() == [seed % 1000, (seed + 1) % 1000]
    assert trajectory.sampler_logprob.tolist() == [-1.0, -2.0]
    assert trajectory.weight_version.tolist() == [0, 0]
    assert trajectory.truncated
    assert trajectory.behavior_logprob is None
    assert trajectory.token_ids.tolist() == [6, 6, *trajectory.response_ids.tolist()]
    assert [array.dtype for array in (trajectory.prompt_ids, trajectory.response_ids)] == [np.int32, np.int32]


def test_the_limit_and_the_split_reach_the_engine() -> None:
    """`held_out` has prompts of its own."""
    worker, engine = make_worker(limit=7)
    respond_to_all(worker, "held_out", [0], draw=0)
    assert [request[1:3] for request in engine.requests] == [([8, 9], 7)]


def test_the_students_response_costs_one_request_and_no_teacher() -> None:
    """Its counts are those of a mixed response without coins."""
    worker, _ = make_worker()
    trajectory, counts = asyncio.run(worker.respond("train", 0, draw=0))
    assert counts == SamplingCounts(len(trajectory.response_ids), 0, 0, len(trajectory.response_ids), 1, 0)


def test_a_response_depends_on_seed_prompt_and_draw_alone() -> None:
    """Not on the replica, the other prompts of the call, their order, or what was drawn before."""
    one, _ = make_worker()
    other, _ = make_worker()
    alone = respond_to_all(one, "train", [2], draw=3)[0]
    respond_to_all(other, "train", [0, 1], draw=0)
    among = respond_to_all(other, "train", [0, 2], draw=3)[1]
    assert alone.response_ids[0] == among.response_ids[0]
    firsts = []
    for seed, prompt, draw in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)):
        worker, engine = make_worker(seed=seed)
        respond_to_all(worker, "train", [prompt], draw=draw)
        firsts.append(engine.requests[0][3])
    assert len(set(firsts)) == 4


numbers = st.integers(0, 2**31 - 1)


@given(numbers, numbers, numbers)
def test_a_seed_is_what_an_engine_takes(run_seed: int, prompt: int, draw: int) -> None:
    """0 <= seed < 2**63, the same whenever asked."""
    seed = request_seed(run_seed, prompt, draw)
    assert 0 <= seed < 2**63
    assert seed == request_seed(run_seed, prompt, draw)


def test_seeds_of_neighbours_are_all_different() -> None:
    """Also where the three numbers change places or add up to the same."""
    seeds = {request_seed(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3


def test_weights_loaded_between_two_calls_are_recorded_on_the_tokens_that_they_draw() -> None:
    """Each response says which version drew it; the tensors reach the engine."""
    worker, engine = make_worker()
    before = respond_to_all(worker, "train", [0, 1], draw=0)
    asyncio.run(worker.load_weights(iter([("w", torch.zeros(1))]), 5))
    after = respond_to_all(worker, "train", [0, 1], draw=1)
    assert [trajectory.weight_version.tolist() for trajectory in before] == [[0], [0, 0]]
    assert [trajectory.weight_version.tolist() for trajectory in after] == [[5], [5, 5]]
    assert engine.loaded == [(5, ["w"])]


MIXED_PROMPTS = {"train": prompt_set([1], [2, 3], [1, 2, 3], [4, 4])}
LIMIT = 6


def mixing_worker(student: TinyStudent, *, scheme: str = "propose_verify", alpha: float = 0.5) -> RolloutWorker:
    loop: Any = EngineLoop(lambda: student, name="test")
    mixture = MixtureSettings(alpha=alpha, scheme=scheme, proposal_tokens=2, stop_token_ids=(EOS,))
    return RolloutWorker(loop, MIXED_PROMPTS, max_response_tokens=LIMIT, seed=3, mixture=mixture)


def mixed(
    worker: RolloutWorker, verify: Verify, asked: Sequence[tuple[int, int]], *, together: bool = False
) -> dict[tuple[int, int], tuple[Trajectory, SamplingCounts]]:
    """Responses to (prompt, draw) pairs, all at once."""

    async def respond() -> list[tuple[Trajectory, SamplingCounts]]:
        return await asyncio.gather(
            *(
                worker.respond(
                    "train",
                    prompt,
                    draw=draw,
                    verify=verify,
                    together=Together("all", len(asked), place) if together else None,
                )
                for place, (prompt, draw) in enumerate(asked)
            )
        )

    return dict(zip(asked, asyncio.run(respond()), strict=True))


def assert_same(one: Trajectory, other: Trajectory) -> None:
    for name in ("response_ids", "sampler_logprob", "behavior_logprob", "weight_version"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.truncated == other.truncated


def slow(verify: Verify, seed: int) -> Verify:
    """A teacher whose verdicts come late and out of order."""
    delays = random.Random(seed)

    async def later(proposal: Proposal) -> Verdict:
        await asyncio.sleep(delays.random() / 200)
        return await verify(proposal)

    return later


@pytest.mark.parametrize("scheme", ["propose_verify", "handoff"])
def test_a_mixed_response_depends_on_no_other_and_on_no_order(scheme: str) -> None:
    """Alone, or among others in any order, with a teacher that answers when it likes, on any replica: the same."""
    student, teacher = sharp(seed=3), TinyTeacher(sharp(seed=4))
    asked = [(prompt, draw) for prompt in range(4) for draw in range(6)]
    one_by_one = {
        each: mixed(worker, teacher.verify, [each])[each]
        for worker in [mixing_worker(TinyStudent(student), scheme=scheme)]
        for each in asked
    }
    assert sum(counts.num_corrections for _, counts in one_by_one.values()) > 10
    for seed in range(3):
        shuffled = random.Random(seed).sample(asked, len(asked))
        worker = mixing_worker(TinyStudent(student), scheme=scheme)
        at_once = mixed(worker, slow(teacher.verify, seed), shuffled, together=seed == 2)
        for each in asked:
            assert_same(at_once[each][0], one_by_one[each][0])
            # Where its proposals end is learned from the others: what it cost may differ, what it is may not.
            assert at_once[each][1].num_corrections == one_by_one[each][1].num_corrections


def test_requests_are_in_the_engine_while_others_wait_for_the_teacher() -> None:
    """A teacher that answers only once every response has proposed: nothing waits for a verdict on another."""
    student, teacher = TinyStudent(sharp(seed=3)), TinyTeacher(sharp(seed=4))
    asked = [(prompt, 0) for prompt in range(4)]
    everybody = asyncio.Event()
    num_proposed = 0

    async def verify(proposal: Proposal) -> Verdict:
        nonlocal num_proposed
        num_proposed += 1
        if num_proposed == len(asked):
            everybody.set()
        await asyncio.wait_for(everybody.wait(), timeout=30)
        return await teacher.verify(proposal)

    assert len(mixed(mixing_worker(student), verify, asked)) == 4


def test_without_a_teacher_a_mixing_worker_samples_from_the_student() -> None:
    """Held-out responses, say: no log m where nothing is cut, and log q of the truncated where something is."""
    plain, _ = asyncio.run(mixing_worker(TinyStudent(sharp(seed=3))).respond("train", 0, draw=0))
    assert plain.behavior_logprob is None
    truncated = TinyStudent(sharp(seed=3), sampling=Sampling(top_k=2))
    cut, _ = asyncio.run(mixing_worker(truncated).respond("train", 0, draw=0))
    assert (cut.behavior_logprob > cut.sampler_logprob).all()


def test_a_teacher_without_mixture_settings_is_refused() -> None:
    """A share to mix by was never given."""
    worker, _ = make_worker()
    with pytest.raises(ValueError, match="no mixture settings"):
        asyncio.run(worker.respond("train", 0, draw=0, verify=TinyTeacher(sharp(seed=4)).verify))


def test_weights_that_come_while_a_response_is_drawn_change_only_its_later_tokens() -> None:
    """They are pulled while the teacher judges the first proposal; each token's records are those of its version."""
    old, new, teacher_model = sharp(seed=3), sharp(seed=8), sharp(seed=4)
    laws = [Law(model, teacher_model, [1, 2, 3], alpha=0.5, limit=LIMIT) for model in (old, new)]
    teacher = TinyTeacher(teacher_model)
    seen = set()
    for draw in range(12):
        student = TinyStudent(sharp(seed=3))
        worker = mixing_worker(student)

        async def verify(proposal: Proposal, worker: RolloutWorker = worker) -> Verdict:
            if proposal.start == 0:
                await worker.load_weights(new.state_dict().items(), 1)
            return await teacher.verify(proposal)

        trajectory, _ = asyncio.run(worker.respond("train", 2, draw=draw, verify=verify))
        ids, versions = trajectory.response_ids.tolist(), trajectory.weight_version.tolist()
        assert versions[0] == 0 and sorted(versions) == versions
        seen |= set(versions)
        for t, (token, version) in enumerate(zip(ids, versions, strict=True)):
            mixture, state = laws[version].mixture(ids[:t]), laws[version].state(ids[:t])
            assert trajectory.behavior_logprob[t] == pytest.approx(np.log(mixture[token]), abs=1e-4)
            assert trajectory.sampler_logprob[t] == pytest.approx(np.log(state.q[token]), abs=1e-4)
    assert seen == {0, 1}


def test_a_response_that_is_given_up_leaves_the_engine() -> None:
    """Its request is aborted; the worker answers others."""
    student, teacher = TinyStudent(sharp(seed=3), stop_token_ids=()), TinyTeacher(sharp(seed=4))

    async def scenario() -> None:
        worker = mixing_worker(student)
        never = asyncio.Event()

        async def silent(proposal: Proposal) -> Verdict:
            await never.wait()
            raise AssertionError

        task = asyncio.ensure_future(worker.respond("train", 0, draw=0, verify=silent))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await worker.respond("train", 1, draw=0, verify=teacher.verify)
        assert not student.has_unfinished()

    asyncio.run(scenario())
