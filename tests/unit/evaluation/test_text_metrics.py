"""Rouge-L and distinct-n, on texts small enough to count by hand."""

import math

import pytest

from minillm_ray.evaluation.text_metrics import distinct_n, rouge_l


def test_rouge_l_is_the_harmonic_mean_of_what_the_longest_common_subsequence_covers() -> None:
    """LCS "the cat mat" has 3 of 4 predicted and 3 of 6 reference words: F = 2 * (3/4 * 1/2) / (3/4 + 1/2)."""
    assert rouge_l(["the cat mat dog"], [["the cat sat on the mat"]]) == pytest.approx([60.0])


def test_rouge_l_takes_the_closest_reference_and_ignores_case_and_endings() -> None:
    assert rouge_l(["Running CATS"], [["something else", "run cat"]]) == pytest.approx([100.0])


def test_an_empty_prediction_scores_zero() -> None:
    assert rouge_l([""], [["a word"]]) == [0.0]


@pytest.mark.parametrize("references", [[], [["a"], ["b"]], [[]], ["a text"]])
def test_rouge_l_refuses_references_that_do_not_belong_to_the_predictions(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="reference"):
        rouge_l(["a"], references)


def test_distinct_n_counts_over_all_sequences_together() -> None:
    """Bigrams 12 23 31 | 12 25: five, of which 12 comes twice."""
    assert distinct_n([[1, 2, 3, 1], [1, 2, 5], [7]], 2) == pytest.approx(4 / 5)


def test_distinct_n_splits_texts_into_words() -> None:
    assert distinct_n(["a b a", "b a"], 1) == pytest.approx(2 / 5)


def test_distinct_n_of_nothing_is_nan() -> None:
    assert math.isnan(distinct_n([[1], []], 2))


def test_distinct_0_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n([[1]], 0)
