"""Which tokens n-gram blocking bans: by hand, and against transformers."""

import pytest
import torch

from minillm_ray.engines.seen_ngrams import SeenNgrams


def test_the_token_that_would_end_a_seen_trigram_is_banned() -> None:
    """1 2 was followed by 3 and by 4."""
    assert SeenNgrams(3).banned([1, 2, 3, 1, 2, 4, 1, 2]) == {3, 4}


def test_nothing_is_banned_after_a_context_that_is_new_or_too_short() -> None:
    assert SeenNgrams(3).banned([1, 2, 3, 2, 1]) == set()
    assert SeenNgrams(3).banned([1]) == set()
    assert SeenNgrams(6).banned([1, 1, 1, 1, 1]) == set()


def test_an_ngram_may_overlap_its_first_occurrence() -> None:
    """1 1 1: the context 1 1 has been followed by 1."""
    assert SeenNgrams(3).banned([1, 1, 1]) == {1}


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_growing_text_is_banned_what_transformers_bans(n: int) -> None:
    """Token by token, the prompt given at once first; every token out of three, so that much repeats."""
    from transformers import NoRepeatNGramLogitsProcessor

    torch.manual_seed(0)
    tokens = torch.randint(0, 3, (60,)).tolist()
    theirs, ours = NoRepeatNGramLogitsProcessor(n), SeenNgrams(n)
    num_banned = 0
    for length in range(10, 61):
        scores = theirs(torch.tensor([tokens[:length]]), torch.zeros(1, 3))
        banned = set(scores[0].isinf().nonzero()[:, 0].tolist())
        assert ours.banned(tokens[:length]) == banned
        num_banned += len(banned)
    assert num_banned > 0


def test_an_ngram_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 1"):
        SeenNgrams(1)
