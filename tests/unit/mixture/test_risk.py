"""Proposals end at coins whose token is likely to fall, as many as did fall so far."""

import numpy as np
import pytest

from minillm_ray.mixture.coins import draw_coins
from minillm_ray.mixture.risk import RiskyCoins

COINS = draw_coins(0, alpha=0.2, num_slots=100_000)


def share_risky(risk: RiskyCoins) -> float:
    """Of the teacher's coins."""
    risky = risk.among(COINS.teacher, COINS.accept)
    assert not risky[~COINS.teacher].any()
    return risky.sum() / COINS.teacher.sum()


@pytest.mark.parametrize(("num_fallen", "expected"), [(0, 0.0), (20, 0.3), (50, 0.75), (80, 1.0), (100, 1.0)])
def test_three_coins_are_risky_for_two_that_fall(num_fallen: int, expected: float) -> None:
    """Those with the highest uniforms; every coin of the teacher where most fall, and never one of the student's."""
    risk = RiskyCoins()
    risk.observe(num_coins=100, num_fallen=num_fallen)
    assert share_risky(risk) == pytest.approx(expected, abs=0.01)


def test_no_coin_is_risky_before_a_verdict() -> None:
    """Nothing is known yet; nor after verdicts on proposals without a coin."""
    risk = RiskyCoins()
    assert share_risky(risk) == 0.0
    risk.observe(num_coins=0, num_fallen=0)
    assert share_risky(risk) == 0.0


def test_the_share_follows_a_student_that_changes() -> None:
    """Some thousand coins later it is as if the earlier ones had not been."""
    risk = RiskyCoins()
    for fallen, expected in ((4, 0.6), (0, 0.0), (4, 0.6)):
        for _ in range(1000):
            risk.observe(num_coins=10, num_fallen=fallen)
        assert share_risky(risk) == pytest.approx(expected, abs=0.01)


def test_risky_coins_find_more_of_the_falls_than_their_share() -> None:
    """With p/q spread evenly over 0 to 2, a quarter of the coins fall; 1.5 for each are risky, and find two thirds."""
    ratio = np.random.default_rng(1).uniform(0.0, 2.0, COINS.teacher.size)
    falls = COINS.teacher & (COINS.accept > ratio)
    risk = RiskyCoins()
    risk.observe(num_coins=int(COINS.teacher.sum()), num_fallen=int(falls.sum()))
    risky = risk.among(COINS.teacher, COINS.accept)
    assert risky.sum() / COINS.teacher.sum() == pytest.approx(0.375, abs=0.01)
    assert (risky & falls).sum() / falls.sum() > 0.6
