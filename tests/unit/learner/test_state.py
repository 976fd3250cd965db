"""A learner that is saved and loaded goes on as if nothing had happened, on as many ranks as there are then."""

import json
import pickle
import random
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from scripted.models import make_trainer, tiny
from scripted.saved_ranks import (
    BATCHES,
    KINDS,
    Outcome,
    make,
    resume,
    run_rank,
    save_after_two_steps,
    weights_of,
)
from torch import Tensor

from minillm_ray.checkpoint.files import CheckpointError
from minillm_ray.config import InputError
from minillm_ray.learner.random_state import random_state, restore_random_state
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.state import load_state, save_state, snapshot

DEADLINE_SECONDS = 90.0


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_learner_continues_bit_for_bit(kind: str, folder: Path) -> None:
    """Weights, moments and steps: the same further steps give the same weights, also in a learner that was in use."""
    learner, _ = save_after_two_steps(kind, folder)
    resumed = resume(kind, folder)
    assert same(weights_of(resumed), weights_of(learner))
    assert resumed.trainer.num_steps == 2
    for batch in BATCHES:
        assert resumed.step(batch) == learner.step(batch)
    assert same(weights_of(resumed), weights_of(learner))


def test_the_learning_rate_goes_on_where_it_was(folder: Path) -> None:
    """It is a function of the step count, which is saved."""
    schedule = LearningRateSchedule(peak=1e-2, warmup_steps=5, steps=9, shape="cosine", final=0.0)
    save_after_two_steps("whole", folder)
    resumed = resume("whole", folder)
    resumed.trainer._schedule = schedule
    assert resumed.step(BATCHES[0])[1].learning_rate == schedule.at(2)


def test_before_the_first_step_there_are_no_moments_to_invent(folder: Path) -> None:
    """Saved at step 0 and loaded into a learner that was in use, it takes the same first step."""
    learner = make("whole")
    save_state(learner.trainer, folder)
    resumed = resume("whole", folder)
    assert resumed.trainer.num_steps == 0
    for each in (learner, resumed):
        each.step(BATCHES[0])
    assert same(weights_of(resumed), weights_of(learner))


def test_a_snapshot_is_of_its_moment(folder: Path) -> None:
    """It is written while the trainer goes on: what is on disk is what was there when it was taken."""
    learner = make("whole")
    learner.step(BATCHES[0])
    before, taken = weights_of(learner), snapshot(learner.trainer)
    learner.step(BATCHES[1])
    torch.rand(1)
    taken.write(folder)
    resumed = resume("whole", folder)
    assert same(weights_of(resumed), before)
    learner.step(BATCHES[2])
    resumed.step(BATCHES[1])
    resumed.step(BATCHES[2])
    assert same(weights_of(resumed), weights_of(learner))


def test_only_what_is_trained_is_saved(folder: Path) -> None:
    """Adapters without the model under them; each with two moments and a step count."""
    _, outcome = save_after_two_steps("adapters", folder)
    stored = load_file(folder / "learner" / "rank-0.safetensors")
    weights = [name for name in stored if name.startswith("weights.")]
    assert weights
    assert all(".lora_" in name for name in stored)
    assert len(stored) == 4 * len(weights)
    assert [record.name for record in outcome.records] == ["learner/rank-0.safetensors", "learner/rank-0.json"]


def test_every_random_generator_goes_on_where_it_was(folder: Path) -> None:
    """torch's, numpy's and python's own, with the second normal number that the last two keep for later."""

    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.rand(), np.random.randn(3).tolist(), random.random(), random.gauss()]

    own = random_state()
    try:
        np.random.randn()
        random.gauss()
        learner = make("whole")
        save_state(learner.trainer, folder)
        expected = draw()
        draw()
        load_state(learner.trainer, folder)
        assert draw() == expected
    finally:
        restore_random_state(own)


def test_nothing_is_unpickled_from_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and loading work where pickle does not, and there are no files but safetensors and JSON."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("pickled or unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (pickle, "dump"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    learner, _ = save_after_two_steps("whole", folder)
    assert same(weights_of(resume("whole", folder)), weights_of(learner))
    assert sorted(path.suffix for path in folder.rglob("*.*")) == [".json", ".safetensors"]


def test_the_state_of_another_student_is_refused(folder: Path) -> None:
    """Other weights, other shapes, adapters where there were none: the message names a weight and the way out."""
    save_after_two_steps("whole", folder)
    wider = make_trainer(tiny("llama", tie_word_embeddings=True, hidden_size=32))
    for trainer, says in (
        (wider, r"model\.norm\.weight is \(16,\), here \(32,\)"),
        (make("adapters").trainer, r"model\.norm\.weight is \(16,\), here not trained"),
        (make_trainer(tiny("gpt2")), r"wte\.weight is not in the checkpoint, here \(48, 16\)"),
    ):
        with pytest.raises(InputError, match=f"{says}.*learner.lora that wrote it.*--fresh"):
            load_state(trainer, folder)


def test_a_rank_whose_shards_are_missing_is_named(folder: Path) -> None:
    """Otherwise its part of every tensor would silently stay what it was."""
    save_after_two_steps("whole", folder)
    path = folder / "learner" / "rank-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_ranks": 2}))
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors is missing; expected the shards of all 2 ranks"):
        load_state(make("whole").trainer, folder)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one-KIND, saved by a single rank, and two-KIND, by two."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind in KINDS:
        for writers in ("one", "two"):
            (folder / f"{writers}-{kind}").mkdir()
        save_after_two_steps(kind, folder / f"one-{kind}")
    return folder


@pytest.fixture(scope="module")
def ranks(shared_folder: Path) -> list[dict[str, Outcome]]:
    """The outcomes of both ranks, by kind, from two processes that must end by the deadline."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    deadline = time.monotonic() + DEADLINE_SECONDS
    processes = torch.multiprocessing.spawn(run_rank, args=(2, address, shared_folder), nprocs=2, join=False)
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < deadline, f"the ranks did not end within {DEADLINE_SECONDS:g} s"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(shared_folder / f"rank-{index}.pt", weights_only=False) for index in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_continue_bit_for_bit(kind: str, ranks: list[dict[str, Outcome]]) -> None:
    """Each reads its shards, an empty one where a tensor has a single row; learners that were in use forget."""
    for rank in ranks:
        assert not same(rank[kind].continued, rank[kind].saved)
        assert same(rank[kind].resumed, rank[kind].continued)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_continues_what_two_saved(kind: str, shared_folder: Path, ranks: list[dict[str, Outcome]]) -> None:
    """The same weights to the bit, and after a step the same as theirs, but for the order of sums."""
    learner = resume(kind, shared_folder / f"two-{kind}")
    assert same(weights_of(learner), ranks[0][kind].saved)
    learner.step(BATCHES[2])
    for name, weight in weights_of(learner).items():
        torch.testing.assert_close(weight, ranks[0][kind].continued[name], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_continue_what_one_saved(kind: str, ranks: list[dict[str, Outcome]]) -> None:
    """The other way round: the group has grown."""
    for rank in ranks:
        for name, weight in rank[kind].from_one.items():
            torch.testing.assert_close(weight, rank[kind].continued[name], atol=5e-6, rtol=1e-5)


def test_each_rank_writes_its_own_shards_alone(shared_folder: Path, ranks: list[dict[str, Outcome]]) -> None:
    """About half of what one rank writes for all: nothing is gathered."""
    one = (shared_folder / "one-whole" / "learner" / "rank-0.safetensors").stat().st_size
    for index, rank in enumerate(ranks):
        tensors, counters = rank["whole"].records
        assert (tensors.name, counters.name) == (f"learner/rank-{index}.safetensors", f"learner/rank-{index}.json")
        assert 0.4 * one < tensors.size_bytes < 0.7 * one
