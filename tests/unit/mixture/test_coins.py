"""The random numbers of a mixed response belong to its seed and to their slot."""

import numpy as np
import pytest

from minillm_ray.mixture.coins import draw_coins


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_a_share_alpha_of_the_coins_says_teacher(alpha: float) -> None:
    """None at 0, all at 1, and else within three standard errors."""
    share = draw_coins(7, alpha=alpha, num_slots=20_000).teacher.mean()
    assert abs(share - alpha) <= 3 * np.sqrt(alpha * (1 - alpha) / 20_000)


def test_a_longer_limit_leaves_the_earlier_slots_alone() -> None:
    """The numbers of a slot depend on the seed and the slot, not on how many slots there are."""
    short, long = (draw_coins(3, alpha=0.5, num_slots=n) for n in (5, 50))
    for name in ("teacher", "accept", "redraw"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:5])


def test_a_coin_does_not_move_with_alpha() -> None:
    """What the teacher draws at a small share, it draws at a larger one too."""
    few, many = (draw_coins(3, alpha=alpha, num_slots=1000).teacher for alpha in (0.2, 0.6))
    assert (few <= many).all() and few.sum() < many.sum()


def test_acceptance_numbers_are_never_zero() -> None:
    """Their logarithm is a threshold: minus infinity would let every token stand."""
    accept = draw_coins(0, alpha=0.5, num_slots=100_000).accept
    assert accept.min() > 0.0 and accept.max() <= 1.0


def test_every_seed_has_numbers_of_its_own() -> None:
    """Two responses share nothing, nor do the coins of one share anything with what its student draws by."""
    coins = [draw_coins(seed, alpha=0.5, num_slots=3) for seed in range(100)]
    students = [np.random.default_rng(seed).random(9) for seed in range(100)]
    numbers = [*(1.0 - each.accept for each in coins), *(each.redraw for each in coins), *students]
    assert len(np.unique(np.concatenate(numbers))) == 100 * (3 + 3 + 9)
