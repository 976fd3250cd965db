"""The figures of one data file, from two prompts and two seeds that can be reckoned by hand."""

import dataclasses

import numpy as np
import pytest

from minillm_ray.evaluation.summary import (
    Drawn,
    FileResult,
    Metric,
    ReferencePrediction,
    ScoredResponse,
    SequenceDivergence,
    summarise,
)


def response(
    row: int, seed: int, text: str, rouge: float, reverse: list[float], *, cut: bool = False
) -> ScoredResponse:
    """Its forward KL is ten times its reverse KL."""
    divergence = SequenceDivergence(np.array(reverse), 10 * np.array(reverse))
    return ScoredResponse(row, seed, f"prompt {row}", text, rouge, len(reverse), cut, divergence)


def prediction(nll: list[float], confidence: list[float], correct: list[bool]) -> ReferencePrediction:
    return ReferencePrediction(np.array(nll), np.array(confidence), np.array(correct))


MODEL = Drawn(
    [
        response(0, 10, "a a b", 20.0, [1.0, 2.0, 3.0]),
        response(1, 10, "a", 40.0, [6.0], cut=True),
        response(0, 20, "a b", 50.0, [1.0, 1.0]),
        response(1, 20, "c d", 70.0, [1.0, 5.0]),
    ],
    [prediction([1.0, 3.0], [0.5, 0.9], [True, True]), prediction([5.0], [0.7], [False])],
)
TEACHER = Drawn(
    [response(row, seed, "x", 80.0, [1.0]) for seed in (10, 20) for row in (0, 1)],
    [prediction([0.5, 0.5], [0.5, 0.5], [True, True]), prediction([1.5], [0.5], [False])],
)
REFERENCES = [SequenceDivergence(np.array([1.0, 2.0]), np.array([3.0, 3.0])), SequenceDivergence(*np.ones((2, 1)))]


def summary(model: Drawn = MODEL, teacher: Drawn | None = TEACHER) -> FileResult:
    return summarise(
        file="f.jsonl",
        num_rows=2,
        num_prompts_cut=0,
        num_references_truncated=0,
        model=model,
        teacher=teacher,
        reference_divergence=None if teacher is None else REFERENCES,
    )


def metric(name: str) -> Metric:
    return next(metric for metric in summary().metrics if metric.name == name)


@pytest.mark.parametrize(
    ("name", "values", "teacher"),
    [
        ("rouge_l", [30.0, 60.0], [80.0, 80.0]),
        ("distinct_1", [50.0, 100.0], [50.0, 50.0]),  # a a b a: 2 of 4 words; a b c d: all
        ("response_tokens", [2.0, 2.0], [1.0, 1.0]),
        ("truncated_percent", [50.0, 0.0], [0.0, 0.0]),
        ("reference_loss", [3.5], [1.0]),  # (1 + 3) / 2 = 2 and 5; 0.5 and 1.5
        ("calibration_error", [(0.5 + 0.1 + 0.7) / 3], [0.5 / 3]),  # one reference a bin; all three in one
        ("reverse_kl_own_responses", [12 / 4, 8 / 4], None),
        ("forward_kl_own_responses", [120 / 4, 80 / 4], None),
        ("reverse_kl_teacher_responses", [1.0, 1.0], None),
        ("reverse_kl_references", [4 / 3], None),
        ("forward_kl_references", [7 / 3], None),
    ],
)
def test_a_metric_by_hand(name: str, values: list[float], teacher: list[float] | None) -> None:
    """One value a seed where responses were sampled; means over tokens are over all tokens of a seed together."""
    found = metric(name)
    assert list(found.model.values) == pytest.approx(values)
    assert (found.teacher and list(found.teacher.values)) == (teacher and pytest.approx(teacher))


def test_mean_and_sample_deviation_over_seeds() -> None:
    """30 and 60: 45 and 15 * sqrt(2). A single value has no deviation."""
    rouge = metric("rouge_l").model
    assert (rouge.mean, rouge.deviation) == pytest.approx((45.0, 15 * 2**0.5))
    assert metric("reference_loss").model.deviation is None


def test_the_counts_behind_distinct_n_are_kept() -> None:
    assert summary().ngrams["model"][1] == [(2, 4), (4, 4)]
    assert summary().ngrams["model"][2] == [(2, 2), (2, 2)]


def test_exposure_bias_pairs_the_forward_kl_of_both_prefixes_by_prompt() -> None:
    """Slot 0: own (10 + 10) / 2 and (60 + 10) / 2, mean 22.5; the teacher's is 10. It reaches one token only."""
    bias = summary().exposure_bias
    assert bias is not None
    assert (bias.student_error.tolist(), bias.teacher_error.tolist()) == ([22.5], [10.0])
    assert bias.excess_percent.tolist() == pytest.approx([125.0])


def test_without_a_teacher_there_is_nothing_of_it() -> None:
    found = summary(teacher=None)
    assert all(metric.teacher is None for metric in found.metrics)
    assert not [metric.name for metric in found.metrics if "kl" in metric.name]
    assert found.exposure_bias is None


@pytest.mark.parametrize("responses", [[], MODEL.responses[:3], [*MODEL.responses, MODEL.responses[0]]])
def test_a_missing_or_doubled_response_is_an_error(responses: list[ScoredResponse]) -> None:
    """No figure is made of a part of the prompts."""
    with pytest.raises(ValueError, match="expected one to each of 2 prompts"):
        summary(dataclasses.replace(MODEL, responses=responses))


def test_a_response_that_the_teacher_did_not_score_is_an_error() -> None:
    unscored = [dataclasses.replace(MODEL.responses[0], divergence=None), *MODEL.responses[1:]]
    with pytest.raises(ValueError, match="row 0, seed 10 was not scored by the teacher"):
        summary(dataclasses.replace(MODEL, responses=unscored))
