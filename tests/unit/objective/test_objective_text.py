"""The plain-text loss: cross-entropy, forward KL, and the chunked pass against dense autograd."""

from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objective_bed import RandomBatch, random_batch

from minillm_ray.objective import Head, text_loss, text_loss_dense, workspace
from minillm_ray.objective.chunks import Chunking


def differentiate_text(function, batch: RandomBatch, *, kd_ratio: float, **options):
    """The result, and the gradients of its loss in hidden states and head."""
    head = batch.student_head
    leaves = {"hidden": batch.student_hidden, "weight": head.weight}
    if head.bias is not None:
        leaves["bias"] = head.bias
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    copy = Head(leaves["weight"], leaves.get("bias"), head.scale, head.soft_cap, head.vocab_size)
    teacher = {"teacher_hidden": batch.teacher_hidden, "teacher_head": batch.teacher_head} if kd_ratio else {}
    result = function(leaves["hidden"], copy, batch.tokens, kd_ratio=kd_ratio, **teacher, **options)
    result.loss.backward()
    return result, {name: leaf.grad for name, leaf in leaves.items()}


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    batch=st.builds(
        random_batch,
        st.lists(st.integers(1, 16), min_size=1, max_size=3).map(tuple),
        vocab_size=st.integers(2, 13),
        padding_rows=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        bias=st.booleans(),
        scale=st.sampled_from([None, 0.5]),
        soft_cap=st.sampled_from([None, 1.5]),
        seed=st.integers(0, 10_000),
    ),
    kd_ratio=st.sampled_from([0.0, 0.3, 1.0]),
    coef=st.sampled_from([1.0, 0.25]),
    normalizer=st.sampled_from([None, 100]),
    chunk=st.integers(1, 50),
    first=st.integers(0, 9),
)
def test_text_pass_equals_its_definition(batch, kd_ratio, coef, normalizer, chunk, first):
    """Loss, per-token numbers and gradients agree with dense autograd in fp64, whatever the chunk."""
    options = {"kd_ratio": kd_ratio, "coef": coef, "normalizer": normalizer}

    def choose(*, num_tokens, lent_rows, **_):
        return Chunking(chunk, max(1, chunk // 2), min(first, lent_rows, num_tokens))

    with mock.patch.object(workspace, "choose_chunking", choose):
        fused, gradients = differentiate_text(text_loss, batch, **options)
    dense, dense_gradients = differentiate_text(text_loss_dense, batch, **options)
    torch.testing.assert_close(fused.loss, dense.loss)
    torch.testing.assert_close(fused.nll, dense.nll)
    torch.testing.assert_close(gradients, dense_gradients)
    if kd_ratio:
        torch.testing.assert_close(fused.forward_kl, dense.forward_kl)


def test_language_modelling_is_torch_cross_entropy():
    """kd_ratio 0: the mean of -log q(y)."""
    batch = random_batch()
    logits = batch.student_hidden @ batch.student_head.weight.t()
    expected = torch.nn.functional.cross_entropy(logits, batch.tokens)
    torch.testing.assert_close(text_loss(batch.student_hidden, batch.student_head, batch.tokens).loss, expected)


@pytest.mark.parametrize("function", [text_loss, text_loss_dense])
def test_pure_distillation_from_itself_is_zero(function):
    """kd_ratio 1 and teacher = student: loss and gradient 0; the tokens do not matter."""
    batch = random_batch()
    hidden = batch.student_hidden.clone().requires_grad_()
    result = function(
        hidden,
        batch.student_head,
        batch.tokens,
        teacher_hidden=batch.student_hidden,
        teacher_head=batch.student_head,
        kd_ratio=1.0,
    )
    result.loss.backward()
    torch.testing.assert_close(result.forward_kl, torch.zeros_like(result.forward_kl), atol=1e-12, rtol=0)
    torch.testing.assert_close(hidden.grad, torch.zeros_like(hidden), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kd_ratio", [0.0, 0.4, 1.0])
def test_text_loss_passes_gradcheck(kd_ratio):
    """Nothing in it is detached but the teacher."""
    batch = random_batch((5,), vocab_size=6, bias=True)
    teacher = {"teacher_hidden": batch.teacher_hidden, "teacher_head": batch.teacher_head} if kd_ratio else {}

    def loss(hidden, weight, bias):
        return text_loss(hidden, Head(weight, bias, 0.7, 3.0), batch.tokens, kd_ratio=kd_ratio, **teacher).loss

    leaves = (batch.student_hidden, batch.student_head.weight, batch.student_head.bias)
    assert torch.autograd.gradcheck(loss, [leaf.clone().requires_grad_() for leaf in leaves])


def test_cutting_the_text_changes_nothing_with_a_global_normaliser():
    """Micro-batches of text add up."""
    batch = random_batch()
    whole = text_loss(batch.student_hidden, batch.student_head, batch.tokens).loss
    parts = [
        text_loss(batch.student_hidden[rows], batch.student_head, batch.tokens[rows], normalizer=23).loss
        for rows in (slice(0, 4), slice(4, 5), slice(5, 23))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_no_text_is_a_loss_of_zero_that_can_be_differentiated():
    """A rank without text takes part in the backward."""
    head = torch.randn(11, 5, requires_grad=True)
    result = text_loss(torch.zeros(0, 5), head, torch.zeros(0, dtype=torch.int64), normalizer=9)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert not head.grad.any()


def test_low_precision_text_agrees_with_the_fp32_oracle():
    """bf16 inputs, softmaxes in fp32: within 1e-2."""
    batch = random_batch((64,), vocab_size=500, dtype=torch.bfloat16)
    high = random_batch((64,), vocab_size=500, dtype=torch.bfloat16)
    high = RandomBatch(
        high.student_hidden.float(),
        Head(high.student_head.weight.float()),
        high.teacher_hidden.float(),
        Head(high.teacher_head.weight.float()),
        *high.arguments[4:],
    )
    result, gradients = differentiate_text(text_loss, batch, kd_ratio=0.5)
    oracle, expected = differentiate_text(text_loss_dense, high, kd_ratio=0.5)
    torch.testing.assert_close(result.loss, oracle.loss, rtol=1e-2, atol=0)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.bfloat16
        assert float((gradient.float() - expected[name]).norm() / expected[name].norm()) < 1e-2
