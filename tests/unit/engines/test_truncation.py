"""Temperature, top-k and top-p in one function: transformers' own truncation, and its edges."""

import math

import pytest
import torch
from scripted.lock_step import sampled_distribution

from minillm_ray.engines.truncation import draw, log_probabilities


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 7, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_it_is_the_distribution_that_transformers_samples(temperature: float, top_k: int | None, top_p: float) -> None:
    """Any combination, on a batch of rows."""
    logits = 3.0 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    ours = log_probabilities(logits, temperature, top_k, top_p)
    theirs = sampled_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.exp().double(), theirs, atol=1e-6, rtol=0)


def test_what_is_off_changes_nothing() -> None:
    """top_k None or 0 or beyond the vocabulary, top_p 1: the plain softmax, bit for bit."""
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    plain = logits.log_softmax(-1)
    for top_k in (None, 0, 10, 11):
        assert torch.equal(log_probabilities(logits, 1.0, top_k, 1.0), plain)


def test_tokens_that_tie_with_the_last_of_top_k_stay() -> None:
    """Three equal ones where two may stay: all three."""
    logprobs = log_probabilities(torch.tensor([1.0, 1.0, 0.0, 1.0]), 1.0, 2)
    torch.testing.assert_close(logprobs, torch.tensor([1 / 3, 1 / 3, 0.0, 1 / 3]).log())


def test_of_tokens_that_tie_at_the_edge_of_top_p_the_higher_ids_stay() -> None:
    """Four equal ones, half the mass: the last two, whatever order a sort would leave them in."""
    logprobs = log_probabilities(torch.zeros(4), 1.0, None, 0.45)
    torch.testing.assert_close(logprobs, torch.tensor([0.0, 0.0, 0.5, 0.5]).log())


def test_a_masked_logit_takes_no_part() -> None:
    """Padding at minus infinity has no mass and is no candidate, also where top_k asks for more than there are."""
    logits = torch.tensor([0.0, 1.0, -math.inf])
    for top_k in (None, 2, 3):
        torch.testing.assert_close(log_probabilities(logits, 1.0, top_k)[:2], logits[:2].log_softmax(-1))
        assert log_probabilities(logits, 1.0, top_k)[2] == -math.inf


def test_low_precision_logits_are_read_as_float32() -> None:
    """bfloat16 in, float32 arithmetic, float32 out."""
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)).bfloat16()
    torch.testing.assert_close(log_probabilities(logits, 0.7), (logits.float() / 0.7).log_softmax(-1), atol=0, rtol=0)


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    """Token k where the uniform lies in [P(below k), P(up to k)); what truncation cut is never drawn, nor beyond the
    end: not at 0, not at the largest number below 1."""
    weights = torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.5, 0.0]])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens = draw(weights.expand(6, -1), uniforms)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]


def test_a_draw_finds_the_only_token_that_has_weight() -> None:
    """Wherever it stands, in vocabularies that fill their last block and that do not, by any uniform."""
    uniforms = torch.tensor([0.0, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    for vocabulary_size in (1, 127, 128, 300, 512):
        for token in {0, 126, 127, 128, 299, 511} & set(range(vocabulary_size)):
            weights = torch.zeros(3, vocabulary_size)
            weights[:, token] = 0.3
            assert draw(weights, uniforms).tolist() == [token] * 3


def test_draws_by_even_uniforms_are_as_frequent_as_the_probabilities() -> None:
    """Within one in 100,000, over a vocabulary of 1,000: float32 sums would not be."""
    logprobs = (2.0 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(2))).log_softmax(-1)
    uniforms = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    weights = logprobs.exp()
    tokens = torch.cat([draw(weights.expand(len(some), -1), some) for some in uniforms.split(10_000)])
    frequency = torch.bincount(tokens, minlength=1000) / 100_000
    torch.testing.assert_close(frequency, weights[0], atol=1.01e-5, rtol=0)
