"""The one-pass walk against its definition: dense autograd, central differences, and low precision."""

from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objective_bed import DOUBLE, RandomBatch, differentiate, random_batch

from minillm_ray.objective import Head, MiniLLMResult, ObjectiveSettings, minillm_loss, minillm_loss_dense, workspace
from minillm_ray.objective.chunks import Chunking
from minillm_ray.objective.settings import CHOICES

COMPARED = [
    *("loss_single_step", "loss_long_term", "kl", "student_logprob", "teacher_logprob", "weight", "ratio", "advantage"),
    *("clipped", "entropy", "forward_kl"),
]


def allowed(**switches) -> ObjectiveSettings | None:
    """The settings, or None where two switches contradict each other (their refusals have tests of their own)."""
    try:
        return ObjectiveSettings(**switches)
    except ValueError:
        return None


SETTINGS = st.builds(
    allowed,
    preset=st.sampled_from(CHOICES["preset"]),
    alpha=st.sampled_from([0.0, 0.2, 0.7]),
    gamma=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    return_start=st.sampled_from(CHOICES["return_start"]),
    later_reward=st.sampled_from(CHOICES["later_reward"]),
    return_norm=st.sampled_from(CHOICES["return_norm"]),
    horizon=st.just(16),
    whiten=st.sampled_from(CHOICES["whiten"]),
    reward_scale=st.sampled_from([1.0, 0.5, 3.0]),
    reward_clip=st.sampled_from([None, 0.7, 100.0]),
    single_step_weight=st.sampled_from(CHOICES["single_step_weight"]),
    long_term_weight=st.sampled_from(CHOICES["long_term_weight"]),
    clip_on=st.sampled_from(CHOICES["clip_on"]),
    clip_eps=st.sampled_from([0.05, 0.2, 0.9]),
    loss_norm=st.sampled_from(CHOICES["loss_norm"]),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
).filter(lambda chosen: chosen is not None)

BATCHES = st.builds(
    random_batch,
    st.lists(st.integers(1, 16), min_size=1, max_size=5).map(tuple),
    vocab_size=st.integers(2, 13),
    padding_rows=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
    scale=st.sampled_from([None, 0.5, 2.0]),
    soft_cap=st.sampled_from([None, 1.5, 30.0]),
    recorded=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 10_000),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(batch=BATCHES, chosen=SETTINGS, chunk=st.integers(1, 40), tile=st.integers(1, 9), first=st.integers(0, 9))
def test_walk_equals_its_definition(batch, chosen, chunk, tile, first):
    """Every shape, head, setting, recording and chunk length: loss, gradients and per-token numbers agree in fp64."""

    def choose(*, num_tokens, lent_rows, **_):
        return Chunking(chunk, tile, min(first, lent_rows, num_tokens))

    with mock.patch.object(workspace, "choose_chunking", choose):
        fused, fused_gradients = differentiate(minillm_loss, batch, chosen, forward_kl=True)
    dense, dense_gradients = differentiate(minillm_loss_dense, batch, chosen, forward_kl=True)
    # Whitening divides by a spread that may be as small as sqrt(1e-8): rounding grows by up to 1e4.
    close = {"atol": 1e-10, "rtol": 1e-9} if chosen.whiten == "none" else {"atol": 1e-7, "rtol": 1e-7}
    torch.testing.assert_close(fused.loss, dense.loss, **close)
    torch.testing.assert_close(fused_gradients, dense_gradients, **close)
    for name in COMPARED:
        torch.testing.assert_close(
            getattr(fused, name), getattr(dense, name), **close, msg=lambda m, n=name: f"{n}: {m}"
        )


EVERY_SETTING = {
    "default": {},
    "paper": {"preset": "paper"},
    "official": {"preset": "official"},
    "exact": {"preset": "exact"},
    "exact_sampled": {"preset": "exact", "later_reward": "sampled"},
    "gamma": {"gamma": 0.6},
    "return_start_current": {"return_start": "current"},
    "sampled": {"later_reward": "sampled"},
    "sampled_frozen": {"later_reward": "sampled_frozen"},
    "norm_none": {"return_norm": "none"},
    "norm_remaining": {"return_norm": "remaining"},
    "norm_horizon": {"return_norm": "horizon", "horizon": 9},
    "whiten_valid": {"whiten": "valid"},
    "whiten_all_slots": {"whiten": "all_slots", "horizon": 9},
    "reward_scale": {"reward_scale": 0.5},
    "reward_clip": {"reward_clip": 0.4},
    "no_single_step": {"single_step": False, "return_start": "current", "later_reward": "sampled"},
    "single_token": {"single_step_weight": "token"},
    "single_prefix": {"single_step_weight": "prefix"},
    "long_none": {"long_term_weight": "none"},
    "long_product": {"long_term_weight": "product", "clip_on": "none"},
    "clip_mixture": {"clip_on": "mixture"},
    "clip_none": {"clip_on": "none"},
    "clip_eps": {"clip_eps": 0.05},
    "sequences": {"loss_norm": "sequences"},
    "microbatch": {"loss_norm": "tokens_microbatch"},
    "temperature": {"temperature": 1.7},
}


def frozen_surrogate(batch: RandomBatch, chosen: ObjectiveSettings, at: MiniLLMResult, normalizer: float):
    """Loss as a function of hidden, weight and bias when everything detached keeps its value `at` the starting point.

    Its central differences are what the walk's gradient has to be.
    """
    head, n = batch.student_head, len(batch.tokens)
    log_p = (batch.teacher_hidden @ batch.teacher_head.weight.t() / chosen.temperature).log_softmax(-1)
    products = chosen.long_term_weight == "product"
    bounds = batch.cu_seqlens.tolist()
    ratio_to_m = (at.weight * at.ratio).split([b - a for a, b in pairwise(bounds)])
    before = torch.cat([torch.cat([part.new_ones(1), part.cumprod(0)[:-1]]) for part in ratio_to_m])
    single = {"none": torch.ones(n, dtype=DOUBLE), "token": at.weight, "prefix": before}[chosen.single_step_weight]
    single = single if chosen.single_step else torch.zeros(n, dtype=DOUBLE)

    def loss(hidden, weight, bias):
        raw = hidden @ weight.t() + bias
        if head.scale is not None:
            raw = raw * head.scale
        if head.soft_cap is not None:
            raw = head.soft_cap * (raw / head.soft_cap).tanh()
        log_q = (raw / chosen.temperature).log_softmax(-1)
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        moved = (log_q[torch.arange(n), batch.tokens] - at.student_logprob).exp()  # q / q at the starting point
        inside, outside = moved * at.ratio, at.weight
        if chosen.clip_on == "mixture":
            inside, outside = moved * at.ratio * at.weight, torch.ones(n, dtype=DOUBLE)
        if chosen.long_term_weight == "none":
            outside = torch.ones(n, dtype=DOUBLE)
        if products:
            inside, outside = moved, torch.ones(n, dtype=DOUBLE)
        long = -at.advantage * inside
        if chosen.clip_on != "none":
            long = torch.maximum(long, -at.advantage * inside.clamp(1 - chosen.clip_eps, 1 + chosen.clip_eps))
        return (single * kl + outside * long).sum() / normalizer

    return loss


@pytest.mark.parametrize("name", EVERY_SETTING)
@pytest.mark.parametrize("recorded", [(False, False), (True, True)], ids=["on_policy", "recorded"])
def test_gradient_is_the_central_difference_of_the_loss_with_detached_parts_frozen(name, recorded):
    """gradcheck of every setting: hidden states, weight and bias, through scale and soft-cap."""
    chosen = ObjectiveSettings(**EVERY_SETTING[name])
    batch = random_batch((1, 4, 2), vocab_size=6, bias=True, scale=1.5, soft_cap=4.0, recorded=recorded)
    result, gradients = differentiate(minillm_loss, batch, chosen)
    share = chosen.normalizer_share(7, 3) * (7 if chosen.loss_norm == "tokens_microbatch" else 1)
    loss = frozen_surrogate(batch, chosen, result, share)
    point = {"hidden": batch.student_hidden, "weight": batch.student_head.weight, "bias": batch.student_head.bias}
    torch.testing.assert_close(loss(**point), result.loss.detach())
    step = 1e-5
    for leaf, tensor in point.items():
        numeric = torch.empty_like(tensor)
        for i in range(tensor.numel()):
            sides = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved.view(-1)[i] += sign * step
                sides.append(loss(**(point | {leaf: moved})))
            numeric.view(-1)[i] = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(gradients[leaf], numeric, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("recorded", [(False, False), (True, True)], ids=["on_policy", "recorded"])
def test_single_step_half_passes_gradcheck(recorded):
    """With gamma 0 nothing in the loss depends on detached numbers: torch's own gradcheck applies."""
    batch = random_batch((1, 3), vocab_size=5, bias=True, soft_cap=3.0, recorded=recorded)
    chosen = ObjectiveSettings(gamma=0.0)

    def loss(hidden, weight, bias):
        return minillm_loss(hidden, Head(weight, bias, None, 3.0), *batch.arguments[2:], chosen).loss

    leaves = (batch.student_hidden, batch.student_head.weight, batch.student_head.bias)
    assert torch.autograd.gradcheck(loss, [leaf.clone().requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("preset", CHOICES["preset"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_agree_with_the_fp32_oracle(preset, dtype):
    """Softmaxes and sums in fp32: within 1e-2 of the oracle on the same numbers in fp32, logits far from 0 included."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, d, vocab_size = 96, 64, 2000
    hidden, teacher_hidden = (torch.randn(num_tokens, d, generator=generator) for _ in range(2))
    weight, teacher_weight = (torch.randn(vocab_size, d, generator=generator) / 4 for _ in range(2))
    bias = torch.full((vocab_size,), 40.0)
    low = RandomBatch(
        hidden.to(dtype),
        Head(weight.to(dtype), bias.to(dtype)),
        teacher_hidden.to(dtype),
        Head(teacher_weight.to(dtype)),
        torch.randint(vocab_size, (num_tokens,), generator=generator),
        torch.tensor([0, 30, 31, 96]),
        None,
        None,
    )
    high = replace(
        low,
        student_hidden=low.student_hidden.float(),
        student_head=Head(low.student_head.weight.float(), low.student_head.bias.float()),
        teacher_hidden=low.teacher_hidden.float(),
        teacher_head=Head(low.teacher_head.weight.float()),
    )
    result, gradients = differentiate(minillm_loss, low, ObjectiveSettings(preset=preset))
    oracle, oracle_gradients = differentiate(minillm_loss_dense, high, ObjectiveSettings(preset=preset))
    assert result.kl.dtype == torch.float32
    for name in ("loss", "kl", "student_logprob", "teacher_logprob", "advantage"):
        value, expected = getattr(result, name), getattr(oracle, name)
        assert float((value - expected).detach().norm() / expected.detach().norm()) < 1e-2, name
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype
        expected = oracle_gradients[name]
        assert float((gradient.float() - expected).norm() / expected.norm()) < 1e-2, name


def test_mixed_precision_of_the_two_models_is_computed_in_the_higher():
    """A bf16 teacher beside an fp32 student, and an fp64 student beside an fp32 teacher."""
    batch = random_batch(dtype=torch.float32)
    teacher = {"teacher_hidden": batch.teacher_hidden, "teacher_head": batch.teacher_head.weight}
    low = replace(
        batch,
        teacher_hidden=teacher["teacher_hidden"].bfloat16(),
        teacher_head=Head(teacher["teacher_head"].bfloat16()),
    )
    result, gradients = differentiate(minillm_loss, low, ObjectiveSettings())
    dense, dense_gradients = differentiate(minillm_loss_dense, low, ObjectiveSettings())
    torch.testing.assert_close(result.loss, dense.loss)
    torch.testing.assert_close(gradients, dense_gradients)
    high = replace(
        batch, student_hidden=batch.student_hidden.double(), student_head=Head(batch.student_head.weight.double())
    )
    assert differentiate(minillm_loss, high, ObjectiveSettings())[0].kl.dtype == DOUBLE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", CHOICES["preset"])
def test_gpu_in_bf16_agrees_with_the_fp32_oracle(preset):
    """bf16 products that add up in fp32, several chunks: within 1e-2 of the oracle on the same numbers."""
    low = random_batch((60, 1, 35), vocab_size=512, bias=True, dtype=torch.bfloat16)

    def moved(head: Head, dtype: torch.dtype) -> Head:
        return Head(head.weight.to("cuda", dtype), None if head.bias is None else head.bias.to("cuda", dtype))

    def on_gpu(dtype: torch.dtype) -> RandomBatch:
        student, _, teacher, _, *rest = (a.cuda() if isinstance(a, torch.Tensor) else a for a in low.arguments)
        heads = moved(low.student_head, dtype), moved(low.teacher_head, dtype)
        return RandomBatch(student.to(dtype), heads[0], teacher.to(dtype), heads[1], *rest)

    with mock.patch.object(workspace, "choose_chunking", lambda **_: Chunking(16, 16)):
        result, gradients = differentiate(minillm_loss, on_gpu(torch.bfloat16), ObjectiveSettings(preset=preset))
    oracle, expected = differentiate(minillm_loss_dense, on_gpu(torch.float32), ObjectiveSettings(preset=preset))
    torch.testing.assert_close(result.loss, oracle.loss, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(result.kl, oracle.kl, rtol=1e-2, atol=1e-4)
    for name, gradient in gradients.items():
        assert float((gradient.float() - expected[name]).norm() / expected[name].norm()) < 1e-2, name
