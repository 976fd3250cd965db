"""Less than the whole teacher: the top k with the rest as one bucket, and log p of the sampled token alone."""

from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objective_bed import DOUBLE, Enumeration, RandomBatch, differentiate, random_batch
from test_objective_fused import BATCHES, COMPARED, SETTINGS

from minillm_ray.objective import (
    Head,
    ObjectiveSettings,
    SampledTeacher,
    TopKTeacher,
    minillm_loss,
    minillm_loss_dense,
    term_gradients,
    workspace,
)
from minillm_ray.objective.chunks import Chunking

ALPHA = 0.2
PRESETS = ["default", "paper", "official", "exact"]


def teacher_rows(batch: RandomBatch, temperature: float = 1.0) -> torch.Tensor:
    """log p, float [N, V], over the common vocabulary."""
    vocab_size = batch.student_head.vocab_size or len(batch.student_head.weight)
    return (batch.teacher_hidden @ batch.teacher_head.weight[:vocab_size].t() / temperature).log_softmax(-1)


def top_k(log_p: torch.Tensor, tokens: torch.Tensor, k: int) -> TopKTeacher:
    best = log_p.topk(k, dim=1)
    rest = log_p.scatter(1, best.indices, -torch.inf).logsumexp(1)
    return TopKTeacher(best.indices, best.values, rest, log_p.gather(1, tokens.unsqueeze(1)).squeeze(1))


def with_top_k(batch: RandomBatch, k: int, temperature: float = 1.0) -> RandomBatch:
    teacher = top_k(teacher_rows(batch, temperature), batch.tokens, k)
    return replace(batch, teacher_hidden=teacher, teacher_head=None)


def with_samples(batch: RandomBatch, temperature: float = 1.0) -> RandomBatch:
    log_p = teacher_rows(batch, temperature).gather(1, batch.tokens.unsqueeze(1)).squeeze(1)
    return replace(batch, teacher_hidden=SampledTeacher(log_p), teacher_head=None)


def sampled_settings(chosen: ObjectiveSettings) -> ObjectiveSettings:
    """The same with rewards that a sampled teacher has."""
    return replace(chosen, later_reward="sampled") if chosen.later_reward == "expected" else chosen


def assert_walk_equals_definition(batch: RandomBatch, chosen: ObjectiveSettings, *, forward_kl: bool) -> None:
    fused, fused_gradients = differentiate(minillm_loss, batch, chosen, forward_kl=forward_kl)
    dense, dense_gradients = differentiate(minillm_loss_dense, batch, chosen, forward_kl=forward_kl)
    # Whitening divides by a spread that may be as small as sqrt(1e-8): rounding grows by up to 1e4.
    close = {"atol": 1e-10, "rtol": 1e-9} if chosen.whiten == "none" else {"atol": 1e-7, "rtol": 1e-7}
    torch.testing.assert_close(fused.loss, dense.loss, **close)
    torch.testing.assert_close(fused_gradients, dense_gradients, **close)
    for name in COMPARED:
        torch.testing.assert_close(getattr(fused, name), getattr(dense, name), **close)
    if dense.agreement is not None:
        torch.testing.assert_close(vars(fused.agreement), vars(dense.agreement), **close)


ALPHAS = st.sampled_from([0.0, 0.2, 1.0])
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(batch=BATCHES, chosen=SETTINGS, alpha=ALPHAS, share=st.floats(0, 1), chunk=st.integers(1, 40))
def test_top_k_walk_equals_its_definition(batch, chosen, alpha, share, chunk):
    """Every shape, setting, mixture and k from 1 to V: loss, gradients and per-token numbers agree in fp64."""
    chosen = replace(chosen, alpha=alpha)
    vocab_size = teacher_rows(batch).shape[1]
    k = 1 + round(share * (vocab_size - 1))
    with mock.patch.object(workspace, "choose_chunking", lambda **_: Chunking(chunk, (chunk + 1) // 2)):
        assert_walk_equals_definition(with_top_k(batch, k, chosen.temperature), chosen, forward_kl=True)


@QUICK
@given(batch=BATCHES, chosen=SETTINGS, alpha=ALPHAS, chunk=st.integers(1, 40))
def test_sampled_walk_equals_its_definition(batch, chosen, alpha, chunk):
    """The same for the score-function estimate, whose value and gradient autograd makes from two expressions."""
    chosen = replace(sampled_settings(chosen), alpha=alpha)
    with mock.patch.object(workspace, "choose_chunking", lambda **_: Chunking(chunk, (chunk + 1) // 2)):
        assert_walk_equals_definition(with_samples(batch, chosen.temperature), chosen, forward_kl=False)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("recorded", [(False, False), (True, False), (True, True)])
def test_a_top_k_of_the_whole_vocabulary_is_the_teacher_itself(preset, alpha, recorded):
    """k = V, the rest without mass: loss, gradients and every per-token number are those of hidden states."""
    batch = random_batch(recorded=recorded, bias=True, soft_cap=4.0)
    chosen = ObjectiveSettings(preset=preset, alpha=alpha)
    exact, exact_gradients = differentiate(minillm_loss, batch, chosen, forward_kl=True)
    whole, gradients = differentiate(minillm_loss, with_top_k(batch, 11), chosen, forward_kl=True)
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(whole.loss, exact.loss, **close)
    torch.testing.assert_close(gradients, exact_gradients, **close)
    for name in COMPARED:
        torch.testing.assert_close(getattr(whole, name), getattr(exact, name), **close)
    for share in vars(whole.agreement).values():
        torch.testing.assert_close(share, torch.ones_like(share))


@pytest.mark.parametrize("preset", ["default", "exact"])
def test_the_divergence_of_buckets_is_a_lower_bound_that_rises_with_k(preset):
    """Data processing: merging tokens can only hide what tells q from p; at k = V nothing is hidden."""
    batch = random_batch(vocab_size=9)
    chosen = ObjectiveSettings(preset=preset)
    results = [minillm_loss(*with_top_k(batch, k).arguments, chosen, forward_kl=True) for k in range(1, 10)]
    exact = minillm_loss(*batch.arguments, chosen, forward_kl=True)
    for name in ("kl", "forward_kl"):
        values = [getattr(result, name) for result in results]
        assert all(bool((low <= high + 1e-12).all()) for low, high in pairwise(values))
        assert float((getattr(exact, name) - values[0]).min()) > 0
        torch.testing.assert_close(values[-1], getattr(exact, name))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_top_k_single_step_passes_gradcheck(k):
    """With gamma 0 nothing in the loss depends on detached numbers: torch's own gradcheck applies."""
    batch = with_top_k(random_batch((1, 3), vocab_size=6, bias=True, soft_cap=3.0), k)

    def loss(hidden, weight, bias):
        head = Head(weight, bias, None, 3.0)
        return minillm_loss(hidden, head, *batch.arguments[2:], ObjectiveSettings(gamma=0.0)).loss

    leaves = (batch.student_hidden, batch.student_head.weight, batch.student_head.bias)
    assert torch.autograd.gradcheck(loss, [leaf.clone().requires_grad_() for leaf in leaves])


def test_masses_and_overlap_are_those_of_the_two_top_k():
    """q and p on the teacher's k ids, and how many of the student's own k are among them."""
    batch = random_batch(vocab_size=30)
    log_q = (batch.student_hidden @ batch.student_head.weight.t()).log_softmax(-1)
    log_p = teacher_rows(batch)
    result = minillm_loss(*with_top_k(batch, 5).arguments, ObjectiveSettings())
    ids, own = log_p.topk(5).indices, log_q.topk(5).indices
    torch.testing.assert_close(result.agreement.student_mass, log_q.exp().gather(1, ids).sum(1))
    torch.testing.assert_close(result.agreement.teacher_mass, log_p.exp().gather(1, ids).sum(1))
    shared = torch.tensor([len(set(a) & set(b)) / 5 for a, b in zip(ids.tolist(), own.tolist(), strict=True)])
    torch.testing.assert_close(result.agreement.overlap, shared.to(DOUBLE))
    assert result.metrics["topk_overlap_mean"] == pytest.approx(float(shared.mean()))
    assert 0 < result.metrics["topk_student_mass_mean"] < result.metrics["topk_teacher_mass_mean"] < 1


def test_a_tail_far_below_rounding_still_counts():
    """1 minus the sum of the k rounds to 0 in fp32; the bucket is summed by itself, and pushes the student off it."""
    student = torch.zeros(1, 8)
    student[0, :2] = 20.0  # the six others together have 6e-9
    log_p = torch.full((1, 8), -60.0)
    log_p[0, :2] = -0.6931472
    tokens, bounds = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1])
    teacher = top_k(log_p, tokens, 2)
    arguments = (student, torch.eye(8), teacher, None, tokens, bounds, None, None, ObjectiveSettings())
    gradient = term_gradients(*arguments).single_step
    log_q = student.log_softmax(-1)
    expected = log_q.exp() * (log_q - log_p)
    torch.testing.assert_close(gradient[0, 2:], expected[0, 2:], rtol=1e-4, atol=0)


def samples_of(bed: Enumeration) -> SampledTeacher:
    return SampledTeacher(bed.token_logprob(bed.teacher))


def token_gradient(bed: Enumeration, chosen: ObjectiveSettings, **mixture) -> torch.Tensor:
    """Each token's logit gradient when log p(y) is all that is known of the teacher."""
    hidden, head, _, _, *rest = bed.arguments(**mixture)
    hidden = hidden.requires_grad_()
    minillm_loss(hidden, head, samples_of(bed), None, *rest, chosen, normalizer=1).loss.backward()
    return hidden.grad


def single_step(bed: Enumeration, chosen: ObjectiveSettings, **mixture) -> torch.Tensor:
    hidden, head, _, _, *rest = bed.arguments(**mixture)
    return term_gradients(hidden, head, samples_of(bed), None, *rest, chosen, normalizer=1).single_step


def exact(**switches) -> ObjectiveSettings:
    return ObjectiveSettings(preset="exact", later_reward="sampled", **switches)


@pytest.mark.parametrize("with_eos", [False, True])
@pytest.mark.parametrize("alpha", [None, ALPHA, 1.0], ids=["on_policy", "mixture", "teacher_alone"])
@pytest.mark.parametrize("weight", ["none", "token", "prefix"])
def test_the_sampled_single_step_has_the_mean_of_the_exact_one(with_eos, alpha, weight):
    """E[(q/m) l_y grad log q(y)] = E[grad KL_t], whoever draws; its own weight is in it, so `token` adds none."""
    bed = Enumeration(with_eos=with_eos)
    log_m = bed.log_mixture(alpha or 0.0)
    chosen = exact(single_step_weight=weight)
    estimated = bed.moments(single_step(bed, chosen, recorded_alpha=alpha), log_m)
    known = bed.moments(bed.halves(chosen, recorded_alpha=alpha).single_step, log_m)
    torch.testing.assert_close(estimated.mean, known.mean, atol=1e-10, rtol=0)
    assert estimated.trace > known.trace


@pytest.mark.parametrize("with_eos", [False, True])
@pytest.mark.parametrize("alpha", [None, ALPHA, 1.0], ids=["on_policy", "mixture", "teacher_alone"])
def test_the_sampled_exact_preset_is_the_gradient_of_the_sequence_level_kl(with_eos, alpha):
    """Both halves from log p(y) alone: still E = g."""
    bed = Enumeration(with_eos=with_eos)
    moments = bed.moments(token_gradient(bed, exact(), recorded_alpha=alpha), bed.log_mixture(alpha or 0.0))
    assert float((moments.mean - bed.kl_gradient()).abs().max()) < 1e-8


@pytest.mark.parametrize("later_reward", ["sampled", "expected"])
def test_the_exact_preset_is_unbiased_when_the_teacher_alone_draws(later_reward):
    """alpha = 1, m = p: products of q / p, finite everywhere."""
    bed = Enumeration()
    chosen = ObjectiveSettings(preset="exact", later_reward=later_reward)
    moments = bed.moments(bed.token_gradient(chosen, recorded_alpha=1.0), bed.log_mixture(1.0))
    assert float((moments.mean - bed.kl_gradient()).abs().max()) < 1e-8


def test_the_sampled_estimate_without_its_weight_would_be_biased_under_the_mixture():
    """What recorded log-probabilities are for: the same tokens taken for the student's own."""
    bed = Enumeration()
    unweighted = bed.moments(single_step(bed, exact()), bed.log_mixture(ALPHA))
    known = bed.moments(bed.halves(exact()).single_step, bed.log_mixture(ALPHA))
    assert float((unweighted.mean - known.mean).abs().max()) > 1e-2


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_the_sampled_divergence_is_k3_with_the_kl_as_its_mean(alpha):
    """(q/m)(e^d - 1 - d) over every y of one state: at least 0, and its average under m is KL(q || p)."""
    batch = random_batch((1,), vocab_size=9, recorded=(False, False))
    log_q = (batch.student_hidden @ batch.student_head.weight.t()).log_softmax(-1)[0]
    log_p = teacher_rows(batch)[0]
    log_m = (alpha * log_p.exp() + (1 - alpha) * log_q.exp()).log()
    result = minillm_loss(
        batch.student_hidden.expand(9, -1),
        batch.student_head,
        SampledTeacher(log_p),
        None,
        torch.arange(9),
        torch.arange(10),
        log_q,
        log_m,
        ObjectiveSettings(alpha=alpha, later_reward="sampled"),
    )
    assert float(result.kl.min()) >= 0
    torch.testing.assert_close((log_m.exp() * result.kl).sum(), (log_q.exp() * (log_q - log_p)).sum())


def test_a_token_that_the_student_finds_impossible_gives_finite_numbers():
    """log p - log q = 120, drawn by the teacher's share: e^120 overflows fp32, (q / m) e^120 = p / m does not."""
    student = torch.tensor([[0.0, 120.0]])
    log_p = torch.tensor([-0.01])
    log_q = student.log_softmax(-1)[:, 0]
    tokens, bounds = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1])
    chosen = ObjectiveSettings(alpha=0.5, later_reward="sampled")
    arguments = (student, torch.eye(2), SampledTeacher(log_p), None, tokens, bounds, log_q, None, chosen)
    assert float(minillm_loss(*arguments).kl) == pytest.approx(2.0, rel=1e-5)
    assert bool(term_gradients(*arguments).single_step.isfinite().all())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", [with_samples, lambda batch: with_top_k(batch, 4)], ids=["sampled", "topk"])
def test_a_student_that_is_the_teacher_is_left_alone(preset, kind):
    """No divergence and no gradient at any k, also when the mixture drew the tokens."""
    batch = random_batch(recorded=(False, False))
    batch = kind(replace(batch, teacher_hidden=batch.student_hidden, teacher_head=batch.student_head))
    own = minillm_loss(*batch.arguments, ObjectiveSettings(later_reward="sampled")).student_logprob
    chosen = sampled_settings(ObjectiveSettings(preset=preset))
    result, gradients = differentiate(minillm_loss, replace(batch, sampler_logprob=own), chosen)
    for value in (result.loss.detach(), result.kl, *gradients.values()):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_no_buffer_is_made_for_the_teacher(kind):
    """A chunk holds the student's logits alone: the same memory takes longer chunks."""
    batch = random_batch(vocab_size=50)
    less = with_top_k(batch, 3) if kind == "topk" else with_samples(batch)
    asked = []

    def choose(**options):
        asked.append(options["chunk_buffers"])
        return Chunking(8, 8)

    with mock.patch.object(workspace, "choose_chunking", choose):
        for given_batch in (batch, less):
            minillm_loss(*given_batch.arguments, ObjectiveSettings(later_reward="sampled"))
    assert asked == [2, 1]


BATCH = random_batch((3, 4), vocab_size=6, dtype=torch.float32)
TOP_K = with_top_k(BATCH, 3).teacher_hidden
SAMPLES = with_samples(BATCH).teacher_hidden


def changed(tensor: torch.Tensor, place, value) -> torch.Tensor:
    copy = tensor.clone()
    copy[place] = value
    return copy


REFUSED = {
    "no_head": ({"teacher_head": None}, "teacher_head is None; teacher_hidden holds hidden states, give the head"),
    "head_beside_top_k": (
        {"teacher_hidden": TOP_K, "teacher_head": BATCH.teacher_head},
        "teacher_head is given beside a TopKTeacher, which holds log-probabilities already; pass None",
    ),
    "expected_reward": (
        {"teacher_hidden": SAMPLES, "teacher_head": None},
        "objective.later_reward=expected is minus the KL at each later state, .* set later_reward=sampled",
    ),
    "ids_shape": (
        {"teacher_hidden": replace(TOP_K, ids=TOP_K.ids[:5]), "teacher_head": None},
        r"TopKTeacher.ids has shape \[5, 3\] and dtype torch.int64; expected int64 \[7, k\]",
    ),
    "logprob_shape": (
        {"teacher_hidden": replace(TOP_K, logprob=TOP_K.logprob[:, :2]), "teacher_head": None},
        r"TopKTeacher.logprob has shape \[7, 2\] and dtype torch.float32; expected float \[7, 3\]",
    ),
    "tail_shape": (
        {"teacher_hidden": replace(TOP_K, tail_logprob=TOP_K.logprob), "teacher_head": None},
        r"TopKTeacher.tail_logprob has shape \[7, 3\] .* expected float \[7\]",
    ),
    "id_twice": (
        {"teacher_hidden": replace(TOP_K, ids=changed(TOP_K.ids, 2, 4)), "teacher_head": None},
        r"TopKTeacher.ids\[2\] holds an id twice; expected 3 distinct ids below 6",
    ),
    "id_outside": (
        {"teacher_hidden": replace(TOP_K, ids=changed(TOP_K.ids, (1, 0), 6)), "teacher_head": None},
        r"TopKTeacher.ids\[1\] holds an id outside the vocabulary; expected 3 distinct ids below 6",
    ),
    "no_tail": (
        {
            "teacher_hidden": replace(TOP_K, tail_logprob=changed(TOP_K.tail_logprob, 4, -torch.inf)),
            "teacher_head": None,
        },
        r"TopKTeacher.tail_logprob\[4\] is -inf; expected the finite log of the mass of the 3 other tokens",
    ),
    "nan": (
        {"teacher_hidden": replace(TOP_K, logprob=changed(TOP_K.logprob, (3, 1), torch.nan)), "teacher_head": None},
        r"TopKTeacher.logprob\[3, 1\] is nan; leave the sample out of the batch and score it again",
    ),
    "device": (
        {"teacher_hidden": replace(TOP_K, ids=TOP_K.ids.to("meta")), "teacher_head": None},
        "TopKTeacher.ids is on meta, student_hidden on cpu; move it there first",
    ),
    "too_many_ids": (
        {
            "teacher_hidden": replace(TOP_K, ids=torch.arange(7).expand(7, 7), logprob=torch.zeros(7, 7) - 2),
            "teacher_head": None,
        },
        "TopKTeacher.ids has 7 ids a token, the vocabulary 6; expected at most as many",
    ),
}


@pytest.mark.parametrize("function", [minillm_loss, minillm_loss_dense, term_gradients])
@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_that_cannot_be_used_is_named_with_the_remedy(case, function):
    """The walk, the oracle and the probe refuse alike."""
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        function(*replace(BATCH, **changes).arguments, ObjectiveSettings())


@pytest.mark.parametrize("function", [minillm_loss, minillm_loss_dense])
def test_forward_kl_from_a_sampled_teacher_is_refused(function):
    """It is an average under p, of which one number is known."""
    with pytest.raises(ValueError, match=r"forward_kl is an average under the whole teacher, .* leave it out"):
        function(
            *replace(BATCH, teacher_hidden=SAMPLES, teacher_head=None).arguments,
            ObjectiveSettings(later_reward="sampled"),
            forward_kl=True,
        )


def test_an_empty_batch_is_no_error():
    """A micro-batch without tokens has loss 0, whatever the teacher."""
    batch = random_batch(())
    for less in (with_top_k(batch, 2), with_samples(batch)):
        assert float(minillm_loss(*less.arguments, ObjectiveSettings(later_reward="sampled")).loss) == 0.0
