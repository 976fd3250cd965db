"""Proposal ends, thresholds, the draw that replaces a token, and the mixture's log-probability, by identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.mixture.arithmetic import (
    draw,
    draw_residual,
    handoff_end,
    handoff_threshold,
    log_mixture,
    log_threshold,
    proposal_end,
)

V = 9


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """log p and log q, float32 [V]."""
    logits = 2.0 * np.random.default_rng(seed).standard_normal((2, V))
    log_p, log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p.astype(np.float32), log_q.astype(np.float32)


UNIFORMS = (np.arange(100_000) + 0.5) / 100_000
"""Evenly spread, so that frequencies are probabilities within 1e-5."""


def frequencies(tokens: list[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=V) / len(tokens)


@given(
    start=st.integers(0, 300),
    proposal_tokens=st.integers(1, 64),
    limit=st.integers(1, 400),
    risky=st.sets(st.integers(0, 400)),
)
def test_a_proposal_ends_after_a_risky_token_or_so_many_or_at_the_limit(
    start: int, proposal_tokens: int, limit: int, risky: set[int]
) -> None:
    """Whatever comes first; it never is empty."""
    limit = max(limit, start + 1)
    marked = np.isin(np.arange(limit), list(risky))
    end = proposal_end(start, proposal_tokens=proposal_tokens, risky=marked)
    assert end == min(start + proposal_tokens, limit, *(slot + 1 for slot in risky if start <= slot))
    assert start < end <= limit


@pytest.mark.parametrize(("start", "end"), [(0, 3), (2, 3), (3, 5), (5, 6)])
def test_a_handoff_proposal_ends_after_the_next_token_of_the_teacher(start: int, end: int) -> None:
    """Coins at slots 2 and 4 of six; after the last one, at the limit."""
    assert handoff_end(start, teacher=np.array([False, False, True, False, True, False])) == end


def test_a_student_slot_stands_whatever_the_teacher_says() -> None:
    """Also where the teacher has cut the token off: log p is then minus infinity."""
    teacher, some = np.array([False, True]), np.float32([-1.0, -1.0])
    for threshold in (log_threshold(some, teacher, np.array([0.5, 0.5])), handoff_threshold(teacher)):
        assert threshold.dtype == np.float32
        assert -np.inf >= threshold[0]
        assert not -np.inf >= threshold[1]


def test_a_token_that_the_teacher_likes_as_much_always_stands_and_any_other_in_proportion() -> None:
    """The share of uniforms at which log p >= log u + log q is min(1, p / q)."""
    log_p, log_q = rows()
    for y in range(V):
        threshold = log_threshold(np.full(len(UNIFORMS), log_q[y]), np.full(len(UNIFORMS), True), UNIFORMS)
        assert abs((log_p[y] >= threshold).mean() - min(1.0, np.exp(log_p[y] - log_q[y]))) < 1e-4


def test_standing_tokens_and_replacements_together_are_the_teachers_distribution() -> None:
    """q min(1, p/q) + TV(p, q) residual = p, with the residual as it is drawn."""
    log_p, log_q = rows()
    p, q = np.exp(log_p), np.exp(log_q)
    residual = frequencies([draw_residual(log_p, log_q, uniform) for uniform in UNIFORMS])
    distance = np.abs(p - q).sum() / 2
    np.testing.assert_allclose(np.minimum(p, q) + distance * residual, p, atol=3e-5)


def test_a_token_of_the_teacher_has_the_teachers_distribution() -> None:
    """The inverse of the distribution function, at even uniforms."""
    log_p, _ = rows()
    np.testing.assert_allclose(frequencies([draw(log_p, uniform) for uniform in UNIFORMS]), np.exp(log_p), atol=3e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.3, np.nextafter(1.0, 0.0)])
def test_a_token_without_mass_is_never_drawn(uniform: float) -> None:
    """Neither at the ends of the vocabulary, nor at the ends of the uniform's range, nor where p is below q."""
    log_p = np.log(
        np.float32([0.0, 0.5, 0.0, 0.5, 0.0]), where=[False, True, False, True, False], out=np.full(5, -np.inf)
    )
    log_q = np.log(np.float32([0.1, 0.6, 0.1, 0.1, 0.1]))
    assert draw(log_p, uniform) in (1, 3)
    assert draw_residual(log_p, log_q, uniform) == 3


def test_equal_models_still_give_a_token() -> None:
    """The residual is empty and only rounding can ask for it: p is what is left."""
    log_p, _ = rows()
    assert draw_residual(log_p, log_p, 0.999) == draw(log_p, 0.999)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_log_mixture_is_the_logarithm_of_the_mixture(alpha: float) -> None:
    """Also where one of the two cannot draw the token."""
    log_p, log_q = rows()
    np.testing.assert_allclose(
        np.exp(log_mixture(log_p, log_q, alpha)), alpha * np.exp(log_p) + (1 - alpha) * np.exp(log_q), rtol=1e-6
    )
    nothing = np.full(V, -np.inf, dtype=np.float32)
    np.testing.assert_allclose(np.exp(log_mixture(nothing, log_q, alpha)), (1 - alpha) * np.exp(log_q), rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_mixture(log_p, nothing, alpha)), alpha * np.exp(log_p), rtol=1e-6)
