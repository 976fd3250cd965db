"""Both KL divergences against ones computed by hand, from hidden states that are the logits themselves."""

import math

import pytest
import torch

from minillm_ray.evaluation.divergence import divergence
from minillm_ray.objective import Head

IDENTITY = Head(torch.eye(2))


def test_both_divergences_of_one_state_by_hand() -> None:
    """q = (1/4, 3/4), p = (1/2, 1/2): KL(q||p) = log 2 - H(q), KL(p||q) = -log 2 - (log 1/4 + log 3/4) / 2."""
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = divergence(student, IDENTITY, teacher, IDENTITY, torch.tensor([0]), torch.tensor([0, 1]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found.reverse_kl.tolist() == pytest.approx([math.log(2) - entropy])
    assert found.forward_kl.tolist() == pytest.approx([-math.log(2) - 0.5 * (math.log(0.25) + math.log(0.75))])


def test_the_distributions_are_those_at_the_sampling_temperature() -> None:
    """At temperature 1/2 odds are squared: q = (1/4, 3/4) becomes (1/10, 9/10)."""
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    found = divergence(student, IDENTITY, teacher, IDENTITY, torch.tensor([0]), torch.tensor([0, 1]), temperature=0.5)
    assert found.reverse_kl.tolist() == pytest.approx([math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)])


def test_which_token_was_drawn_and_what_padding_rows_say_changes_nothing() -> None:
    """The divergence is of the state; rows from vocab_size on are no tokens."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    head, bounds = torch.randn(9, 4), torch.tensor([0, 2, 6])
    padded = Head(torch.cat([head, 100 * torch.ones(3, 4)]), vocab_size=9)
    plain = divergence(student, Head(head), teacher, Head(head), torch.zeros(6, dtype=torch.long), bounds)
    other = divergence(student, padded, teacher, padded, torch.full((6,), 8), bounds)
    torch.testing.assert_close(plain.reverse_kl, other.reverse_kl)
    torch.testing.assert_close(plain.forward_kl, other.forward_kl)
