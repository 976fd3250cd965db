"""A rollout worker answers in the order asked, with draws that depend on nothing but what they must."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted.roles import ScriptedSamplingEngine

from minillm_ray.data.sets import PromptSet, lay_end_to_end
from minillm_ray.rollout.worker import RolloutWorker, request_seed


def prompt_set(*prompts: list[int]) -> PromptSet:
    token_ids, offsets = lay_end_to_end([np.array(prompt, dtype=np.int32) for prompt in prompts])
    nothing = tuple(() for _ in prompts)
    return PromptSet(token_ids, offsets, nothing, tuple("" for _ in prompts), 0, "")


PROMPTS = {"train": prompt_set([5], [6, 6], [7, 7, 7]), "held_out": prompt_set([8, 9])}


def make_worker(*, seed: int = 1, limit: int = 50) -> tuple[RolloutWorker, ScriptedSamplingEngine]:
    engine = ScriptedSamplingEngine()
    return RolloutWorker(engine, PROMPTS, max_response_tokens=limit, seed=seed), engine


def test_responses_come_in_the_order_of_the_prompts() -> None:
    """Whatever the order in which the engine finishes them; a prompt may be asked for twice."""
    worker, engine = make_worker()
    trajectories = worker.generate("train", [2, 0, 2], draw=4)
    assert [trajectory.prompt_index for trajectory in trajectories] == [2, 0, 2]
    assert [trajectory.prompt_ids.tolist() for trajectory in trajectories] == [[7, 7, 7], [5], [7, 7, 7]]
    assert [len(trajectory.response_ids) for trajectory in trajectories] == [1, 2, 3]
    assert [request[1] for request in engine.requests] == [[7, 7, 7], [5], [7, 7, 7]]


def test_a_trajectory_holds_what_the_engine_drew_and_nothing_else() -> None:
    """Ids, log-probabilities, versions and the truncation as they came; no mixture took part."""
    worker, engine = make_worker()
    _, trajectory = worker.generate("train", [0, 1], draw=0)
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
    worker.generate("held_out", [0], draw=0)
    assert [request[1:3] for request in engine.requests] == [([8, 9], 7)]


def test_a_response_depends_on_seed_prompt_and_draw_alone() -> None:
    """Not on the replica, the other prompts of the call, their order, or what was drawn before."""
    one, _ = make_worker()
    other, _ = make_worker()
    other.generate("train", [1], draw=9)
    seeds = {}
    for worker, indices in ((one, [0, 1, 2]), (other, [2, 0])):
        for trajectory in worker.generate("train", indices, draw=3):
            seeds.setdefault(trajectory.prompt_index, set()).add(int(trajectory.response_ids[0]))
    assert all(len(found) == 1 for found in seeds.values())


def test_another_draw_or_another_run_seed_draws_anew() -> None:
    """Several responses to one prompt are told apart; so are two runs."""
    firsts = []
    for seed, draw in ((1, 0), (1, 1), (2, 0)):
        worker, engine = make_worker(seed=seed)
        worker.generate("train", [0], draw=draw)
        firsts.append(engine.requests[0][3])
    assert len(set(firsts)) == 3


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
    before = worker.generate("train", [0, 1], draw=0)
    worker.load_weights(iter([("w", torch.zeros(1))]), 5)
    after = worker.generate("train", [0, 1], draw=1)
    assert [trajectory.weight_version.tolist() for trajectory in before] == [[0], [0, 0]]
    assert [trajectory.weight_version.tolist() for trajectory in after] == [[5], [5, 5]]
    assert engine.loaded == [(5, ["w"])]


def test_no_prompts_are_no_work() -> None:
    """A share may be empty."""
    worker, engine = make_worker()
    assert worker.generate("train", [], draw=0) == []
    assert engine.requests == []
