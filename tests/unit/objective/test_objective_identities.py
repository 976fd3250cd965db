"""Identities of one token and of one batch, for any numbers: gradients, weights, the clip, returns, signs."""

import math
from dataclasses import replace

import pytest
import torch
from objective_bed import DOUBLE, differentiate, random_batch

from minillm_ray.objective import (
    Head,
    ObjectiveSettings,
    minillm_loss,
    minillm_loss_dense,
    mixture_log_weight,
    term_gradients,
)
from minillm_ray.objective.layout import Layout
from minillm_ray.objective.returns import ReturnWalk, whitened
from minillm_ray.objective.weights import prefix_log_weight

PRESETS = ["default", "paper", "official", "exact"]
ZERO = torch.zeros((), dtype=DOUBLE)


def log_softmaxes(rows: int, vocab_size: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator, dtype=DOUBLE).log_softmax(-1) for _ in range(2))


def one_token_sequences(count: int) -> torch.Tensor:
    return torch.arange(count + 1)


def test_single_step_gradient_is_the_policy_gradient_of_the_mean_reward():
    """-grad E_{y~q}[r] = grad KL: -sum_v q_v (r_v - 1) grad log q_v by hand, and the walk's closed form."""
    student, teacher = (torch.randn(6, 9, generator=torch.Generator().manual_seed(s), dtype=DOUBLE) for s in (1, 2))
    logits = student.clone().requires_grad_()
    log_q, log_p = logits.log_softmax(-1), teacher.log_softmax(-1)
    reward = (log_p - log_q).detach()
    (expected,) = torch.autograd.grad(-(log_q.exp().detach() * (reward - 1) * log_q).sum(), logits)
    identity, settings = torch.eye(9, dtype=DOUBLE), ObjectiveSettings()
    tokens, bounds = torch.zeros(6, dtype=torch.int64), one_token_sequences(6)
    arguments = (student, identity, teacher, identity, tokens, bounds, None, None, settings)
    torch.testing.assert_close(term_gradients(*arguments, normalizer=1).single_step, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9, 1.0])
def test_weight_turns_averages_under_the_mixture_into_averages_under_the_student(alpha):
    """sum_v m(v) w(v) f(v) == sum_v q_b(v) f(v) for every f; with f = 1, E_m[w] = 1."""
    log_q_b, log_p = log_softmaxes(64, 7)
    mixture = (1 - alpha) * log_q_b.exp() + alpha * log_p.exp()
    weight = mixture_log_weight(log_q_b, log_p, alpha=alpha).exp()
    f = torch.stack([torch.ones(7, dtype=DOUBLE), torch.randn(7, dtype=DOUBLE)], dim=1)
    torch.testing.assert_close((mixture * weight) @ f, log_q_b.exp() @ f)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_weight_is_never_above_the_inverse_of_the_students_share(alpha):
    """w <= 1 / (1 - alpha), and w = 1 exactly where alpha is 0."""
    log_q_b, log_p = log_softmaxes(64, 7)
    weight = mixture_log_weight(log_q_b, log_p, alpha=alpha).exp()
    assert float(weight.max()) <= 1 / (1 - alpha) + 1e-12
    if alpha == 0.0:
        assert torch.equal(weight, torch.ones_like(weight))


def test_weight_of_a_token_that_the_teacher_alone_drew_is_the_plain_ratio():
    """alpha = 1: m = p and w = q_b / p, bit for bit, however small either is."""
    log_q_b, log_p = torch.tensor([-1.0, -90.0, -1e-9]), torch.tensor([-2.0, -0.5, -100.0])
    assert torch.equal(mixture_log_weight(log_q_b, log_p, alpha=1.0), log_q_b - log_p)


def test_a_recorded_weight_may_exceed_the_inverse_of_the_students_share():
    """log q_b is of the whole vocabulary, log m of truncated models: w is taken as recorded, without a bound."""
    batch = random_batch()
    batch = replace(batch, behavior_logprob=batch.sampler_logprob - 1.0)
    chosen = ObjectiveSettings(alpha=0.2)
    result, gradients = differentiate(minillm_loss, batch, chosen)
    torch.testing.assert_close(result.weight, torch.full_like(result.weight, math.e))
    dense, dense_gradients = differentiate(minillm_loss_dense, batch, chosen)
    torch.testing.assert_close((result.loss, gradients), (dense.loss, dense_gradients))


def test_unrecorded_mixture_is_formed_from_alpha_and_the_teacher():
    """behavior_logprob None with a sampler's log-prob gives the weights of m = alpha p + (1 - alpha) q_b."""
    batch = random_batch(recorded=(True, False))
    settings = ObjectiveSettings(alpha=0.3)
    result, gradients = differentiate(minillm_loss, batch, settings)
    log_w = mixture_log_weight(batch.sampler_logprob, result.teacher_logprob, alpha=0.3)
    torch.testing.assert_close(result.weight, log_w.exp())
    recorded = replace(batch, behavior_logprob=batch.sampler_logprob - log_w)
    again, again_gradients = differentiate(minillm_loss, recorded, settings)
    torch.testing.assert_close(again.loss, result.loss)
    torch.testing.assert_close(again_gradients, gradients)


def test_nothing_recorded_means_on_policy_without_a_mixture():
    """w = omega = 1 whatever alpha is."""
    result, _ = differentiate(minillm_loss, random_batch(recorded=(False, False)), ObjectiveSettings(alpha=0.9))
    assert torch.equal(result.weight, torch.ones_like(result.weight))
    assert torch.equal(result.ratio, torch.ones_like(result.ratio))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_teacher_equal_to_student_gives_exactly_zero(preset, alpha):
    """Every r, KL and gradient is 0, bit for bit, since both sides run one kernel; fp32, also for alpha > 0."""
    batch = random_batch(dtype=torch.float32, recorded=(False, False))
    batch = replace(batch, teacher_hidden=batch.student_hidden, teacher_head=batch.student_head)
    settings = ObjectiveSettings(preset=preset, alpha=alpha)
    own = differentiate(minillm_loss, batch, settings)[0].student_logprob
    result, gradients = differentiate(minillm_loss, replace(batch, sampler_logprob=own), settings)
    assert result.loss.item() == 0.0
    assert torch.equal(result.kl, torch.zeros_like(result.kl))
    assert torch.equal(result.advantage, torch.zeros_like(result.advantage))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_teacher_equal_to_student_gives_zero_in_the_oracle(preset):
    """The same to 1e-6 through autograd."""
    batch = random_batch(dtype=torch.float32, recorded=(False, False))
    batch = replace(batch, teacher_hidden=batch.student_hidden, teacher_head=batch.student_head)
    result, gradients = differentiate(minillm_loss_dense, batch, ObjectiveSettings(preset=preset))
    for value in (result.loss, *gradients.values()):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_logit_gradients_sum_to_zero_at_each_slot(preset):
    """A constant added to all logits of a slot is not seen by the softmax."""
    batch = random_batch(vocab_size=5)
    batch = replace(batch, student_head=Head(torch.eye(5, dtype=DOUBLE)))
    _, gradients = differentiate(minillm_loss, batch, ObjectiveSettings(preset=preset))
    assert float(gradients["hidden"].abs().max()) > 1e-3
    torch.testing.assert_close(gradients["hidden"].sum(1), torch.zeros(23, dtype=DOUBLE))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_constant_on_all_logits_changes_nothing(preset):
    """Loss and gradients are those of the shifted logits."""
    batch = random_batch(vocab_size=5)
    batch = replace(batch, student_head=Head(torch.eye(5, dtype=DOUBLE)))
    shift = torch.linspace(-30, 30, 23, dtype=DOUBLE).unsqueeze(1)
    settings = ObjectiveSettings(preset=preset)
    result, gradients = differentiate(minillm_loss, batch, settings)
    shifted = replace(batch, student_hidden=batch.student_hidden + shift)
    moved, moved_gradients = differentiate(minillm_loss, shifted, settings)
    torch.testing.assert_close(moved.loss, result.loss)
    torch.testing.assert_close(moved_gradients["hidden"], gradients["hidden"])


def test_first_update_is_not_clipped_when_the_weight_stands_outside():
    """At theta = theta_b the clipped gradient is the unclipped one."""
    batch = random_batch(recorded=(False, True))
    own = differentiate(minillm_loss, batch, ObjectiveSettings())[0].student_logprob
    batch = replace(batch, sampler_logprob=own)
    clipped, clipped_gradients = differentiate(minillm_loss, batch, ObjectiveSettings(clip_on="policy"))
    _, plain_gradients = differentiate(minillm_loss, batch, ObjectiveSettings(clip_on="none"))
    assert not clipped.clipped.any()
    torch.testing.assert_close(clipped_gradients, plain_gradients)


@pytest.mark.parametrize(
    ("teacher_over_student", "clipped"), [(2.3, True), (2.2, False), (1.0, False), (0.2, False), (1 / 6.1, False)]
)
def test_first_update_has_dead_zones_when_the_weight_stands_inside(teacher_over_student, clipped):
    """alpha = eps = 0.2 and A < 0: a token that the teacher likes 2.25 times better gets no long-term gradient."""
    q = 0.3
    p = teacher_over_student * q
    student = torch.tensor([[q, 1 - q], [0.5, 0.5]], dtype=DOUBLE).log()
    teacher = torch.tensor([[p, 1 - p], [0.9, 0.1]], dtype=DOUBLE).log()
    identity = torch.eye(2, dtype=DOUBLE)
    tokens, bounds = torch.tensor([0, 0]), torch.tensor([0, 2])
    settings = ObjectiveSettings(clip_on="mixture", alpha=0.2, clip_eps=0.2)
    arguments = (student, identity, teacher, identity, tokens, bounds, student[:, 0], None, settings)
    result = minillm_loss(*arguments)
    assert float(result.advantage[0]) < 0
    assert bool(result.clipped[0]) is clipped
    assert bool((term_gradients(*arguments).long_term[0] == 0).all()) is clipped


def test_dead_zone_on_the_other_side():
    """A > 0: a token that the teacher likes 6 times less than the student gets no gradient, w = 1.2 at p = q / 6."""
    for teacher_over_student, clipped in ((1 / 6.5, True), (1 / 5.5, False)):
        q = 0.5
        p = teacher_over_student * q
        student = torch.tensor([[q, 1 - q], [0.5, 0.5]], dtype=DOUBLE).log()
        teacher = torch.tensor([[p, 1 - p], [0.9, 0.1]], dtype=DOUBLE).log()
        identity = torch.eye(2, dtype=DOUBLE)
        settings = ObjectiveSettings(clip_on="mixture", later_reward="sampled")
        tokens, bounds = torch.tensor([0, 0]), torch.tensor([0, 2])
        result = minillm_loss(student, identity, teacher, identity, tokens, bounds, student[:, 0], None, settings)
        assert float(result.advantage[0]) > 0
        assert bool(result.clipped[0]) is clipped


def test_k3_estimate_is_nonnegative_and_its_mean_is_the_kl():
    """k3 = e^d - 1 - d with d = log p - log q of the sampled token: its mean over y ~ q is `kl`."""
    batch = random_batch((1,), vocab_size=9, recorded=(False, False))
    every = replace(
        batch,
        student_hidden=batch.student_hidden.expand(9, -1),
        teacher_hidden=batch.teacher_hidden.expand(9, -1),
        tokens=torch.arange(9),
        cu_seqlens=one_token_sequences(9),
    )
    result = minillm_loss(*every.arguments, ObjectiveSettings())
    d = result.teacher_logprob - result.student_logprob
    k3 = d.exp() - 1 - d
    assert float(k3.min()) >= 0
    torch.testing.assert_close((result.student_logprob.exp() * k3).sum(), result.kl[0])
    torch.testing.assert_close(result.kl, result.kl[:1].expand(9))


def test_entropy_and_forward_kl_are_those_of_the_softmaxes():
    """H(q) = -sum q log q and KL(p || q) = sum p (log p - log q), from the same visit."""
    batch = random_batch()
    for function in (minillm_loss, minillm_loss_dense):
        result = function(*batch.arguments, ObjectiveSettings(), forward_kl=True)
        log_q = (batch.student_hidden @ batch.student_head.weight.t()).log_softmax(-1)
        log_p = (batch.teacher_hidden @ batch.teacher_head.weight.t()).log_softmax(-1)
        torch.testing.assert_close(result.entropy, -(log_q.exp() * log_q).sum(-1))
        torch.testing.assert_close(result.forward_kl, (log_p.exp() * (log_p - log_q)).sum(-1))
        torch.testing.assert_close(result.kl, (log_q.exp() * (log_q - log_p)).sum(-1))


@pytest.mark.parametrize("preset", ["default", "paper", "exact"])
def test_one_token_response_trains_its_kl_and_nothing_else(preset):
    """An EOS alone: no later token, no long-term term; KL_0 has its gradient."""
    batch = random_batch((1, 1, 1), recorded=(False, False))
    settings = ObjectiveSettings(preset=preset)
    result, gradients = differentiate(minillm_loss, batch, settings)
    halves = term_gradients(*batch.arguments, settings)
    assert torch.equal(result.advantage, torch.zeros_like(result.advantage))
    assert float(result.loss_long_term) == 0.0
    assert float(halves.long_term.abs().max()) == 0.0
    torch.testing.assert_close(halves.single_step, gradients["hidden"])
    assert float(halves.single_step.abs().amin(1).min()) > 0


def test_last_slot_of_a_response_has_no_return_and_all_slots_train():
    """A truncated response stops at the horizon: no bootstrap, no penalty, KL at every slot."""
    batch = random_batch((5, 4), recorded=(False, False))
    settings = ObjectiveSettings(return_norm="horizon", horizon=5)
    result = minillm_loss(*batch.arguments, settings)
    assert float(result.advantage[4]) == float(result.advantage[8]) == 0.0
    assert float(result.kl.min()) > 0
    torch.testing.assert_close(result.advantage[0], -result.kl[1:5].sum() / 4)
    torch.testing.assert_close(result.advantage[5], -result.kl[6:9].sum() / 4)


@pytest.mark.parametrize("length", [1, 2, 37, 2048])
@pytest.mark.parametrize("gamma", [0.5, 0.95, 1.0])
def test_constant_reward_has_the_geometric_return_at_any_length(length, gamma):
    """C_t = (1 - gamma^n) / (1 - gamma): finite where a discount by absolute position has underflown."""
    layout = Layout.from_cu_seqlens(torch.tensor([0, length]), num_tokens=length, device=torch.device("cpu"))
    settings = ObjectiveSettings.from_preset("default", gamma=gamma, return_norm="none", return_start="current")
    walk = ReturnWalk(layout, settings, DOUBLE)
    returns = walk.advance(0, length, torch.ones(length, dtype=DOUBLE))
    left = torch.arange(length, 0, -1, dtype=DOUBLE)
    expected = left if gamma == 1.0 else (1 - gamma**left) / (1 - gamma)
    torch.testing.assert_close(returns, expected)


def test_prefix_products_are_running_products_of_each_sequence():
    """W_{0..t} and W_{0..t-1}; they start anew at each sequence, and an empty product is 1."""
    lengths = [1, 5, 2]
    bounds = torch.tensor([0, 1, 6, 8])
    layout = Layout.from_cu_seqlens(bounds, num_tokens=8, device=torch.device("cpu"))
    log_ratio = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    through = torch.cat([part.exp().cumprod(0) for part in log_ratio.split(lengths)])
    torch.testing.assert_close(prefix_log_weight(log_ratio, layout, inclusive=True).exp(), through)
    before = prefix_log_weight(log_ratio, layout, inclusive=False).exp()
    torch.testing.assert_close(before, through / log_ratio.exp())
    assert [float(before[i]) for i in (0, 1, 6)] == [1.0, 1.0, 1.0]


def test_official_whitening_over_padding_lifts_the_mean():
    """Rewards are mostly negative and padding is 0: over all slots few tokens end positive, over valid ones most do."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 121, (64,), generator=generator)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    num_tokens = int(bounds[-1])
    layout = Layout.from_cu_seqlens(bounds, num_tokens=num_tokens, device=torch.device("cpu"))
    reward = torch.randn(num_tokens, generator=generator, dtype=DOUBLE) - 1
    official = ObjectiveSettings(preset="official")
    advantage = ReturnWalk(layout, official, DOUBLE).advance(0, num_tokens, reward)
    valid = whitened(advantage, layout, replace(official, whiten="valid"))
    padded = whitened(advantage, layout, official)
    torch.testing.assert_close(valid.mean(), ZERO)
    torch.testing.assert_close(valid.var(correction=0), ZERO + 1, atol=1e-6, rtol=0)
    assert float(padded.mean()) < -1
    assert float((padded > 0).double().mean()) < 0.05 < 0.5 < float((valid > 0).double().mean())


def test_loss_is_the_sum_of_its_two_terms_and_gradients_too():
    """`loss_single_step` and `loss_long_term` add up to `loss`; `term_gradients` to the gradient."""
    batch = random_batch()
    result, gradients = differentiate(minillm_loss, batch, ObjectiveSettings())
    torch.testing.assert_close(result.loss_single_step + result.loss_long_term, result.loss.detach())
    torch.testing.assert_close(result.loss_single_step, result.kl.mean())
    halves = term_gradients(*batch.arguments, ObjectiveSettings())
    torch.testing.assert_close(halves.single_step + halves.long_term, gradients["hidden"])


def test_sign_of_the_long_term_term():
    """A high later KL under expected rewards lowers log q(y): the slope of the loss in log q(y) is positive."""
    batch = random_batch((6,), recorded=(False, False))
    result = minillm_loss(*batch.arguments, ObjectiveSettings())
    assert float(result.advantage[:-1].max()) < 0
    halves = term_gradients(*batch.arguments, ObjectiveSettings())
    log_q = batch.student_hidden.clone().requires_grad_()
    picked = (log_q @ batch.student_head.weight.t()).log_softmax(-1).gather(1, batch.tokens.unsqueeze(1))
    (up,) = torch.autograd.grad(picked.sum(), log_q)
    torch.testing.assert_close(halves.long_term, -result.advantage.unsqueeze(1) * up / 6)


def test_metrics_are_the_reductions_of_the_per_token_numbers():
    """Means, maxima, clip fraction and effective sample size of this call."""
    batch = random_batch()
    result = minillm_loss(*batch.arguments, ObjectiveSettings())
    total = result.weight * result.ratio
    metrics = result.metrics
    assert metrics["num_tokens"] == 23
    assert metrics["kl_mean"] == pytest.approx(float(result.kl.mean()))
    assert metrics["ratio_max"] == pytest.approx(float(result.ratio.max()))
    assert metrics["clip_fraction"] == pytest.approx(float(result.clipped.double().mean()))
    assert metrics["clip_fraction"] > 0
    assert metrics["effective_sample_fraction"] == pytest.approx(float(total.sum() ** 2 / total.square().sum() / 23))
    assert all(math.isfinite(value) for value in metrics.values())
