"""Expected calibration error by hand, and what a head makes of given tokens against dense logits."""

import math

import numpy as np
import pytest
import torch
from scripted.models import head_logits

from minillm_ray.evaluation.calibration import expected_calibration_error, predict
from minillm_ray.objective import Head


def test_each_bin_counts_by_its_size() -> None:
    """(0.9, 1]: confidences 0.95 and 0.99, one hit: |1/2 - 0.97|. (0.3, 0.4]: 0.4 and 0.35, one hit: |1/2 - 0.375|."""
    error = expected_calibration_error([0.95, 0.99, 0.4, 0.35], [True, False, True, False])
    assert error == pytest.approx(2 / 4 * 0.47 + 2 / 4 * 0.125)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    """One bin (0, 0.1]: |1 hit - 0.15| / 2; in two bins it would be (0.9 + 0.05) / 2. And 0 is in the first one."""
    assert expected_calibration_error([0.1, 0.05], [True, False]) == pytest.approx(0.85 / 2)
    assert expected_calibration_error([0.0, 0.05], [False, True]) == pytest.approx(0.95 / 2)


def test_a_model_that_is_right_as_often_as_it_says_has_no_error() -> None:
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0.0)


def test_label_words_are_measured_by_the_same_function() -> None:
    """Label words of probability 0.3 and 0.1, renormalised to 3/4 and 1/4, and the first is right: 1/4 is missing."""
    words = np.array([0.3, 0.1])
    assert expected_calibration_error([words.max() / words.sum()], [True]) == pytest.approx(0.25)


def test_nothing_has_no_error_to_speak_of() -> None:
    assert math.isnan(expected_calibration_error([], []))


@pytest.mark.parametrize(
    ("confidence", "correct", "says"),
    [([0.5], [True, False], "one length"), ([[0.5]], [[True]], "one length"), ([1.5], [True], "outside 0..1")],
)
def test_what_is_no_list_of_probabilities_is_refused(confidence: list, correct: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expected_calibration_error(confidence, correct)


@pytest.mark.parametrize("memory_mb", [1, 272])
def test_predictions_are_those_of_the_dense_distribution(memory_mb: int) -> None:
    """Scale, soft-cap, bias, padding rows and temperature included, and however many rows are made at once."""
    torch.manual_seed(0)
    hidden = torch.randn(700, 8)
    head = Head(torch.randn(600, 8), torch.randn(600), scale=0.5, soft_cap=2.0, vocab_size=590)
    tokens = torch.randint(0, 590, (700,))
    distribution = (head_logits(hidden, head) / 0.7).softmax(-1)
    tokens[::2] = distribution.argmax(-1)[::2]  # half of them are right
    found = predict(hidden, head, tokens, temperature=0.7, logits_memory_mb=memory_mb)
    torch.testing.assert_close(found.nll, -distribution.gather(1, tokens[:, None])[:, 0].log())
    torch.testing.assert_close(found.confidence, distribution.max(-1).values)
    assert torch.equal(found.correct, distribution.argmax(-1) == tokens)
