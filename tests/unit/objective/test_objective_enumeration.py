"""Means and covariances of gradient estimators, summed over every sequence of a tabular model.

g is the gradient of the sequence-level KL(q || p) by central differences. "Equal" is 1e-8 in every component.
"""

import pytest
import torch
from objective_bed import DOUBLE, Enumeration, Moments, T
from torch import Tensor

from minillm_ray.objective import ObjectiveSettings, minillm_loss

ALPHA = 0.2
EQUAL = 1e-8


def exact(**switches) -> ObjectiveSettings:
    return ObjectiveSettings.from_preset("exact", **switches)


@pytest.fixture(scope="module", params=[False, True], ids=["fixed_length", "with_eos"])
def bed(request) -> Enumeration:
    return Enumeration(with_eos=request.param)


@pytest.fixture(scope="module")
def fixed() -> Enumeration:
    return Enumeration()


@pytest.fixture(scope="module")
def with_eos() -> Enumeration:
    return Enumeration(with_eos=True)


def on_policy(bed: Enumeration, token_gradient: Tensor) -> Moments:
    return bed.moments(token_gradient, bed.token_logprob(bed.student))


def under_mixture(bed: Enumeration, token_gradient: Tensor) -> Moments:
    return bed.moments(token_gradient, bed.log_mixture(ALPHA))


def error(moments: Moments, bed: Enumeration) -> float:
    return float((moments.mean - bed.kl_gradient()).abs().max())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def current_return(later_reward: str = "sampled", **switches) -> ObjectiveSettings:
    """Return from slot t on: a product weight has no meaning for it, and on-policy every weight is 1."""
    return exact(later_reward=later_reward, return_start="current", long_term_weight="token", **switches)


def test_bed_holds_every_sequence():
    """4^5 of fixed length; with an EOS, those that stop and those cut off at T: 1+3+9+27+81 and 243."""
    assert len(Enumeration().lengths) == 1024
    lengths = Enumeration(with_eos=True).lengths
    assert [int((lengths == n).sum()) for n in range(1, T + 1)] == [1, 3, 9, 27, 81 + 243]


@pytest.mark.parametrize("later_reward", ["expected", "sampled"])
def test_exact_preset_is_the_gradient_of_the_sequence_level_kl(bed, later_reward):
    """E = g for both reward forms, cosine at least 1 - 1e-9."""
    moments = on_policy(bed, bed.token_gradient(exact(later_reward=later_reward)))
    assert error(moments, bed) < EQUAL
    assert cosine(moments.mean, bed.kl_gradient()) > 1 - 1e-9


def test_pure_policy_gradient_is_unbiased(bed):
    """-E sum_t R_t grad log q(y_t) = g, the split's starting point (paper, eq. 2)."""
    assert error(on_policy(bed, bed.halves(current_return()).long_term), bed) < EQUAL


@pytest.mark.parametrize(
    ("name", "pure", "sampled", "expected"), [("fixed", 29.5, 22.9, 14.6), ("eos", 15.7, 11.0, 6.9)]
)
def test_variance_falls_from_policy_gradient_to_split_to_expected_rewards(name, pure, sampled, expected):
    """Covariance traces of three unbiased estimators: each step keeps the mean and lowers the variance."""
    bed = Enumeration(with_eos=name == "eos")
    traces = [
        on_policy(bed, bed.halves(current_return()).long_term).trace,
        on_policy(bed, bed.token_gradient(exact(later_reward="sampled"))).trace,
        on_policy(bed, bed.token_gradient(exact(later_reward="expected"))).trace,
    ]
    assert traces == pytest.approx([pure, sampled, expected], abs=0.05)
    assert traces[0] > traces[1] > traces[2]


@pytest.mark.parametrize(("name", "angle", "trace"), [("fixed", 0.9382, 0.86), ("eos", 0.834, 0.60)])
def test_single_step_alone_is_biased_and_far_less_noisy(name, angle, trace):
    """gamma = 0 leaves no long-term term: its angle to g, and its noise."""
    bed = Enumeration(with_eos=name == "eos")
    moments = on_policy(bed, bed.token_gradient(exact(gamma=0.0)))
    assert error(moments, bed) > 1e-2
    assert cosine(moments.mean, bed.kl_gradient()) == pytest.approx(angle, abs=5e-4)
    assert moments.trace == pytest.approx(trace, abs=0.005)


def test_discounting_is_biased(bed):
    """gamma = 0.95 moves the mean away from g."""
    assert error(on_policy(bed, bed.token_gradient(exact(gamma=0.95))), bed) > 1e-3


@pytest.mark.parametrize(("name", "angle", "trace"), [("fixed", 0.9853, 32.0), ("eos", 0.971, 17.3)])
def test_return_from_the_current_token_is_biased(name, angle, trace):
    """The return of the authors' code: its angle to g, and its noise."""
    bed = Enumeration(with_eos=name == "eos")
    moments = on_policy(bed, bed.token_gradient(current_return()))
    assert error(moments, bed) > 1e-1
    assert cosine(moments.mean, bed.kl_gradient()) == pytest.approx(angle, abs=5e-4)
    assert moments.trace == pytest.approx(trace, abs=0.06)


def test_return_from_the_current_token_counts_the_single_step_twice(bed):
    """Its mean is g plus one further E sum_t grad KL_t, exactly."""
    twice = on_policy(bed, bed.token_gradient(current_return())).mean
    single = on_policy(bed, bed.halves(exact()).single_step).mean
    torch.testing.assert_close(twice - single, bed.kl_gradient(), atol=EQUAL, rtol=0)


def test_without_the_exact_half_that_return_alone_is_the_policy_gradient(bed):
    """eq. 2: the same mean g as both halves together, from sampled rewards alone."""
    alone = on_policy(bed, bed.token_gradient(current_return(single_step=False))).mean
    torch.testing.assert_close(alone, bed.kl_gradient(), atol=EQUAL, rtol=0)


@pytest.mark.parametrize(("later_reward", "trace"), [("sampled", 28.9), ("expected", 15.5)])
def test_under_the_mixture_own_products_are_unbiased(fixed, later_reward, trace):
    """Preset exact with log m recorded: prefix weights on KL, its own product on each later reward."""
    moments = under_mixture(fixed, fixed.token_gradient(exact(later_reward=later_reward), recorded_alpha=ALPHA))
    assert error(moments, fixed) < EQUAL
    assert cosine(moments.mean, fixed.kl_gradient()) > 1 - 1e-9
    assert moments.trace == pytest.approx(trace, abs=0.06)


@pytest.mark.parametrize("later_reward", ["sampled", "expected"])
def test_under_the_mixture_own_products_are_unbiased_with_eos(with_eos, later_reward):
    """The same where sequences stop by themselves, and some are truncated."""
    moments = under_mixture(with_eos, with_eos.token_gradient(exact(later_reward=later_reward), recorded_alpha=ALPHA))
    assert error(moments, with_eos) < EQUAL


@pytest.mark.parametrize("later_reward", ["sampled", "expected"])
def test_own_products_are_of_the_current_student(bed, later_reward):
    """Unbiased too when the sampler held other weights than the learner: m is made of an older q_b."""
    stale = bed.student + 0.3 * torch.randn(bed.student.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    q_b, p = bed.token_logprob(stale), bed.token_logprob(bed.teacher)
    log_m = (ALPHA * p.exp() + (1 - ALPHA) * q_b.exp()).log()
    hidden, *rest = bed.arguments()
    hidden.requires_grad_()
    rest[-2:] = [q_b, log_m]
    minillm_loss(hidden, *rest, exact(later_reward=later_reward), normalizer=1).loss.backward()
    assert error(bed.moments(hidden.grad, log_m), bed) < EQUAL


@pytest.mark.parametrize(("later_reward", "trace"), [("sampled", 35.0), ("expected", 19.3)])
def test_whole_sequence_product_is_unbiased_and_noisier(fixed, later_reward, trace):
    """W_{0..n-1} on everything."""
    halves = fixed.halves(exact(later_reward=later_reward))
    log_ratio = fixed.token_logprob(fixed.student) - fixed.log_mixture(ALPHA)
    whole = fixed.sequence_sum(log_ratio).exp()[fixed.sequence].unsqueeze(1)
    moments = under_mixture(fixed, whole * (halves.single_step + halves.long_term))
    assert error(moments, fixed) < EQUAL
    assert moments.trace == pytest.approx(trace, abs=0.06)


@pytest.mark.parametrize(("later_reward", "angle", "trace"), [("sampled", 0.989, 18.7), ("expected", 0.999, 15.3)])
def test_one_product_on_the_whole_return_is_biased(fixed, later_reward, angle, trace):
    """The trap: W_{0..t} on slot t corrects its token, not the continuation that was still drawn from m."""
    halves = fixed.halves(exact(later_reward=later_reward))
    ratio = (fixed.token_logprob(fixed.student) - fixed.log_mixture(ALPHA)).exp()
    product = fixed.prefix_product(ratio, inclusive=True).unsqueeze(1)
    moments = under_mixture(fixed, product * (halves.single_step + halves.long_term))
    assert error(moments, fixed) > 1e-2
    assert cosine(moments.mean, fixed.kl_gradient()) == pytest.approx(angle, abs=5e-4)
    assert moments.trace == pytest.approx(trace, abs=0.06)


@pytest.mark.parametrize(
    ("switches", "bias", "angle", "trace"),
    [
        pytest.param({"single_step_weight": "token"}, 4e-2, 0.983, 18.0, id="paper_sampled"),
        pytest.param(
            {"single_step_weight": "token", "later_reward": "expected"}, 3e-2, 0.994, 14.7, id="paper_expected"
        ),
        pytest.param({}, 4e-2, 0.983, 17.7, id="long_term_only"),
        pytest.param({"return_start": "current"}, 2e-1, 0.962, 27.2, id="official"),
        pytest.param({"long_term_weight": "none"}, 1e-1, 0.956, 18.6, id="no_weights"),
    ],
)
def test_per_token_weights_are_biased_under_the_mixture(fixed, switches, bias, angle, trace):
    """From the paper's approximation to no weights at all: size of the bias, angle to g, noise."""
    chosen = {"single_step_weight": "none", "long_term_weight": "token", "later_reward": "sampled"} | switches
    moments = under_mixture(fixed, fixed.token_gradient(exact(**chosen), recorded_alpha=ALPHA))
    assert error(moments, fixed) == pytest.approx(bias, rel=0.25)
    assert cosine(moments.mean, fixed.kl_gradient()) == pytest.approx(angle, abs=6e-4)
    assert moments.trace == pytest.approx(trace, abs=0.06)


def test_token_weight_on_the_single_step_changes_no_mean(bed):
    """E_m[w_t | s_t] = 1 and KL_t does not depend on y_t: the two means agree, the variances do not."""
    with_weight, without = (
        under_mixture(
            bed,
            bed.token_gradient(exact(single_step_weight=weight, long_term_weight="token"), recorded_alpha=ALPHA),
        )
        for weight in ("token", "none")
    )
    torch.testing.assert_close(with_weight.mean, without.mean, atol=1e-12, rtol=0)
    assert with_weight.trace > without.trace


def test_length_norm_keeps_the_mean_of_expected_rewards_at_fixed_length(fixed):
    """1 / n_t is a constant of the slot there: both reward forms have one mean."""
    sampled, expected = (
        on_policy(fixed, fixed.token_gradient(exact(later_reward=kind, return_norm="later"))).mean
        for kind in ("sampled", "expected")
    )
    torch.testing.assert_close(sampled, expected, atol=1e-12, rtol=0)


def test_length_norm_moves_the_mean_of_expected_rewards_with_eos(with_eos):
    """n_t depends on later tokens: the known gap of 5e-2 (cosine 0.9915), traces 2.79 and 1.65, neither is g."""
    sampled, expected = (
        on_policy(with_eos, with_eos.token_gradient(exact(later_reward=kind, return_norm="later")))
        for kind in ("sampled", "expected")
    )
    assert float((sampled.mean - expected.mean).abs().max()) == pytest.approx(5e-2, rel=0.1)
    assert cosine(sampled.mean, expected.mean) == pytest.approx(0.9915, abs=5e-4)
    assert [sampled.trace, expected.trace] == pytest.approx([2.79, 1.65], abs=0.01)
    g = with_eos.kl_gradient()
    assert [cosine(sampled.mean, g), cosine(expected.mean, g)] == pytest.approx([0.926, 0.951], abs=5e-4)


def test_horizon_norm_keeps_the_mean_of_expected_rewards_with_eos(with_eos):
    """H - t - 1 depends on the slot only: both reward forms have one mean even where lengths vary."""
    sampled, expected = (
        on_policy(with_eos, with_eos.token_gradient(exact(later_reward=kind, return_norm="horizon", horizon=T))).mean
        for kind in ("sampled", "expected")
    )
    torch.testing.assert_close(sampled, expected, atol=1e-12, rtol=0)


def test_a_sampled_log_ratio_as_loss_has_a_gradient_that_ignores_the_teacher(fixed):
    """E_q[grad sum_t (log q(y_t) - log p(y_t))] = 0 for any teacher: why the settings refuse it."""
    logits = fixed.student.clone().requires_grad_()
    log_q = fixed.sequence_sum(fixed.token_logprob(logits))
    log_p = fixed.sequence_sum(fixed.token_logprob(fixed.teacher))
    (gradient,) = torch.autograd.grad((log_q.detach().exp() * (log_q - log_p)).sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
