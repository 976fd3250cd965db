"""The numbers of a step are those of its whole batch, however it was cut over micro-batches and ranks."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scripted.models import VOCABULARY

from minillm_ray.learner.micro_batches import MicroBatch
from minillm_ray.learner.step_metrics import combine_step, finish_step, micro_batch_metrics
from minillm_ray.objective import MiniLLMResult, ObjectiveSettings, minillm_loss
from minillm_ray.telemetry.declarations import METRICS
from minillm_ray.telemetry.reductions import Mean, Reduction

LENGTHS = (5, 13, 1, 30)
SETTINGS = ObjectiveSettings.from_preset("default", alpha=0.3)


def batch_of(lengths: tuple[int, ...], tokens: torch.Tensor) -> MicroBatch:
    bounds = np.cumsum([0, *lengths]).astype(np.int32)
    return MicroBatch(
        input_ids=torch.zeros(1, 1, dtype=torch.long),
        slots=torch.zeros(len(tokens), dtype=torch.long),
        tokens=tokens,
        cu_seqlens=torch.from_numpy(bounds),
        members=tuple(range(len(lengths))),
    )


@pytest.fixture(scope="module")
def drawn() -> dict[str, torch.Tensor]:
    """Random hidden states and heads for all tokens; the sampler was at older weights."""
    generator = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    student, teacher = (torch.randn(count, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    heads = [torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64) * 0.5 for _ in range(2)]
    tokens = torch.randint(VOCABULARY, (count,), generator=generator)
    drift = torch.randn(count, generator=generator, dtype=torch.float64) * 0.3
    logprob = (student @ heads[0].T).log_softmax(-1).gather(1, tokens[:, None])[:, 0] + drift
    return {
        "student": student,
        "teacher": teacher,
        "student_head": heads[0],
        "teacher_head": heads[1],
        "tokens": tokens,
        "sampler": logprob.clamp(max=-1e-3),
    }


def statistics(drawn: dict[str, torch.Tensor], first: int, last: int) -> dict[str, Reduction]:
    """Of the sequences first .. last - 1 as one micro-batch, normalised by the whole batch."""
    batch, result, sampler = evaluate(drawn, first, last)
    return micro_batch_metrics(batch, result, sampler)


def evaluate(drawn: dict[str, torch.Tensor], first: int, last: int) -> tuple[MicroBatch, MiniLLMResult, torch.Tensor]:
    bounds = np.cumsum([0, *LENGTHS])
    rows = slice(bounds[first], bounds[last])
    batch = batch_of(LENGTHS[first:last], drawn["tokens"][rows])
    sampler = drawn["sampler"][rows]
    result = minillm_loss(
        drawn["student"][rows],
        drawn["student_head"],
        drawn["teacher"][rows],
        drawn["teacher_head"],
        batch.tokens,
        batch.cu_seqlens,
        sampler,
        None,
        SETTINGS,
        normalizer=float(sum(LENGTHS)),
    )
    return batch, result, sampler


@pytest.mark.parametrize("cuts", [[0, 1, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]])
def test_micro_batches_add_up_to_the_whole_batch(cuts: list[int], drawn: dict[str, torch.Tensor]) -> None:
    """Every number, means and maxima and the effective sample size included; in either order."""
    whole = finish_step(combine_step([statistics(drawn, 0, len(LENGTHS))]))
    parts = [statistics(drawn, first, last) for first, last in pairwise(cuts)]
    for order in (parts, parts[::-1]):
        assert finish_step(combine_step(order)) == pytest.approx(whole, rel=1e-12)


def test_ranks_combine_what_their_micro_batches_made(drawn: dict[str, torch.Tensor]) -> None:
    """Combining twice, first on each rank and then over them, is combining once; a rank may have had none."""
    parts = [statistics(drawn, k, k + 1) for k in range(len(LENGTHS))]
    ranks = [combine_step(parts[:3]), combine_step(parts[3:]), combine_step([])]
    assert finish_step(combine_step(ranks)) == pytest.approx(finish_step(combine_step(parts)), rel=1e-12)


def test_the_numbers_are_the_plain_statistics_of_all_tokens(drawn: dict[str, torch.Tensor]) -> None:
    """Read off the per-token tensors of the whole batch."""
    _, result, sampler = evaluate(drawn, 0, len(LENGTHS))
    numbers = finish_step(statistics(drawn, 0, len(LENGTHS)))
    mismatch = (result.student_logprob - sampler).abs()
    weight = result.weight * result.ratio
    expected = {
        "objective/kl_nats_per_token/mean": result.kl.mean(),
        "objective/entropy_nats_per_token/mean": result.entropy.mean(),
        "objective/ratio/mean": result.ratio.mean(),
        "objective/ratio/max": result.ratio.max(),
        "objective/weight/mean": result.weight.mean(),
        "objective/clip_fraction/mean": result.clipped.double().mean(),
        "objective/loss/total": result.loss,
        "objective/loss/single_step": result.loss_single_step,
        "objective/loss/long_term": result.loss_long_term,
        "learner/sampler_mismatch_nats/mean": mismatch.mean(),
        "learner/sampler_mismatch_nats/max": mismatch.max(),
        "objective/effective_sample_size_fraction/mean": weight.sum() ** 2 / (len(weight) * weight.square().sum()),
    }
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(float(value)), name
    assert 0 < numbers["objective/clip_fraction/mean"] < 1
    assert numbers["objective/effective_sample_size_fraction/mean"] < 0.999


def test_every_number_is_a_declared_metric_and_none_is_hidden(drawn: dict[str, torch.Tensor]) -> None:
    """The sums behind the effective sample size do not leave the room."""
    numbers = finish_step(statistics(drawn, 0, len(LENGTHS)))
    assert set(numbers) <= set(METRICS)
    assert all(math.isfinite(value) for value in numbers.values())


def test_deciles_are_means_by_tenth_of_the_response(drawn: dict[str, torch.Tensor]) -> None:
    """Token t of n is in tenth floor(10 t / n), so a response of 5 has every second one and 1 token only the first."""
    batch, result, _ = evaluate(drawn, 0, len(LENGTHS))
    found: dict[int, list[float]] = {}
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        for place in range(end - start):
            found.setdefault(10 * place // (end - start), []).append(float(result.kl[start + place]))
    numbers = finish_step(statistics(drawn, 0, len(LENGTHS)))
    for tenth in range(10):
        assert numbers[f"objective/kl_nats_per_token/decile_{tenth}"] == pytest.approx(np.mean(found[tenth]))


def test_a_tenth_without_tokens_is_left_out(drawn: dict[str, torch.Tensor]) -> None:
    """A single response of 5 tokens fills tenths 0, 2, 4, 6 and 8."""
    names = [name for name in statistics(drawn, 0, 1) if "decile" in name]
    assert names == [f"objective/kl_nats_per_token/decile_{tenth}" for tenth in (0, 2, 4, 6, 8)]


def test_equal_weights_are_an_effective_sample_of_everything() -> None:
    """Four weights of 0.5 count as four samples; one weight among zeros as one."""
    equal = {"_weight": Mean(2.0, 4.0), "_squared_weight": Mean(1.0, 4.0)}
    single = {"_weight": Mean(2.0, 4.0), "_squared_weight": Mean(4.0, 4.0)}
    name = "objective/effective_sample_size_fraction/mean"
    assert finish_step(equal) == {name: 1.0}
    assert finish_step(single) == {name: 0.25}
