"""Two ranks make the step that one makes: same gradient, same weights, same numbers, whatever each was dealt."""

import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from scripted.models import one_rank
from scripted.ranks import Outcome, combined, run_rank, work

DEADLINE_SECONDS = 90.0

Ranks = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def alone() -> Outcome:
    """The same work on one rank, without a group."""
    return work(one_rank())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Compute dtype -> the outcomes of both ranks, from two processes that must end by the deadline."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    deadline = time.monotonic() + DEADLINE_SECONDS
    processes = torch.multiprocessing.spawn(run_rank, args=(2, address, Path(folder)), nprocs=2, join=False)
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < deadline, f"the ranks did not end within {DEADLINE_SECONDS:g} s"
    finally:
        for process in processes.processes:
            process.kill()
    outcomes = [torch.load(folder / f"rank-{index}.pt", weights_only=False) for index in range(2)]
    return {dtype: [outcome[dtype] for outcome in outcomes] for dtype in ("float32", "bfloat16")}


def test_two_ranks_take_the_step_that_one_takes(together: Ranks, alone: Outcome) -> None:
    """Every gradient norm and every weight, after whole batches and after one of a single sequence; adapters too."""
    for outcome in together["float32"]:
        assert outcome.norms == pytest.approx(alone.norms, rel=1e-4)
        for name in ("distilled", "supervised", "adapted"):
            expected = getattr(alone, name)
            found = getattr(outcome, name)
            assert found.keys() == expected.keys()
            for key, weight in found.items():
                torch.testing.assert_close(weight, expected[key], atol=5e-6, rtol=1e-5)


def test_every_rank_knows_the_whole_model(together: Ranks) -> None:
    """Gathered tensors are the same on both, also where the head is tied and comes twice."""
    first, second = together["float32"]
    for key, weight in first.distilled.items():
        assert torch.equal(weight, second.distilled[key])
    assert torch.equal(first.distilled["lm_head.weight"], first.distilled["model.embed_tokens.weight"])


def test_the_numbers_of_a_step_are_those_of_one_rank(together: Ranks, alone: Outcome) -> None:
    """Divergence, losses, ratios, lengths and the rest; a rank without responses takes nothing away."""
    for step in range(2):
        expected = combined([alone], step)
        assert combined(together["float32"], step) == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)


def test_the_divergence_of_two_shares_is_that_of_the_whole(together: Ranks, alone: Outcome) -> None:
    """Sums and counts add up."""
    parts = [outcome.divergence for outcome in together["float32"]]
    assert sum(part.count for part in parts) == alone.divergence.count
    assert sum(part.sum for part in parts) == pytest.approx(alone.divergence.sum, rel=1e-4)


def test_supervised_losses_are_the_same_on_every_rank(together: Ranks, alone: Outcome) -> None:
    """Of training steps and of the held-out rows, of which there is an odd number."""
    for outcome in together["float32"]:
        assert outcome.losses == pytest.approx(alone.losses, rel=1e-5)
        assert outcome.validation == pytest.approx(alone.validation, rel=1e-5)


def test_bfloat16_passes_keep_float32_weights_and_come_close(together: Ranks, alone: Outcome) -> None:
    """The passes are coarser, the weights and the update are not rounded to bfloat16."""
    for outcome in together["bfloat16"]:
        assert {weight.dtype for weight in outcome.distilled.values()} == {torch.float32}
        assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in outcome.distilled.values())
        assert outcome.losses == pytest.approx(alone.losses, rel=2e-2)
        assert outcome.norms == pytest.approx(alone.norms, rel=0.1)
        assert outcome.losses != pytest.approx(alone.losses, rel=1e-6)
