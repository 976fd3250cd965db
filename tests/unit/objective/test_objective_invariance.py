"""What must not matter: chunks, order, neighbours, padding, cuts into micro-batches, and being called twice."""

from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from objective_bed import DOUBLE, RandomBatch, differentiate, random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from minillm_ray.objective import Head, ObjectiveSettings, minillm_loss, minillm_loss_dense, workspace
from minillm_ray.objective.chunks import Chunking, choose_chunking

PRESETS = ["default", "paper", "official", "exact"]
TIGHT = {"atol": 1e-12, "rtol": 1e-12}


@contextmanager
def chunks_of(chunk: int, tile: int | None = None):
    """Chunk and tile lengths that memory and cache would not choose for a small batch."""
    with mock.patch.object(workspace, "choose_chunking", lambda **_: Chunking(chunk, tile or chunk)):
        yield


def sequences(batch: RandomBatch, order: list[int]) -> RandomBatch:
    """The same batch with only these sequences, in this order."""
    bounds = batch.cu_seqlens.tolist()
    index = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in order])
    lengths = torch.tensor([0] + [bounds[i + 1] - bounds[i] for i in order])
    return replace(
        batch,
        student_hidden=batch.student_hidden[index],
        teacher_hidden=batch.teacher_hidden[index],
        tokens=batch.tokens[index],
        cu_seqlens=lengths.cumsum(0),
        sampler_logprob=batch.sampler_logprob[index],
        behavior_logprob=batch.behavior_logprob[index],
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (2, 1), (3, 2), (5, 5), (8, 3), (22, 7), (23, 23), (64, 64)])
def test_chunk_length_changes_nothing(preset, chunk, tile):
    """The carry joins chunks and tiles: sequences inside one, across several, of length 1."""
    batch, settings = random_batch(bias=True), ObjectiveSettings(preset=preset)
    dense, dense_gradients = differentiate(minillm_loss_dense, batch, settings)
    with chunks_of(chunk, tile):
        fused, fused_gradients = differentiate(minillm_loss, batch, settings)
    torch.testing.assert_close(fused.loss, dense.loss, **TIGHT)
    torch.testing.assert_close(fused.advantage, dense.advantage, **TIGHT)
    torch.testing.assert_close(fused_gradients, dense_gradients, **TIGHT)


@pytest.mark.parametrize("preset", PRESETS)
def test_order_of_sequences_changes_nothing(preset):
    """Per-token numbers move with their tokens; loss and head gradient stay."""
    batch, settings = random_batch(), ObjectiveSettings(preset=preset)
    order = [2, 0, 3, 1]
    result, gradients = differentiate(minillm_loss, batch, settings)
    with chunks_of(4):
        moved, moved_gradients = differentiate(minillm_loss, sequences(batch, order), settings)
    bounds = batch.cu_seqlens.tolist()
    index = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in order])
    torch.testing.assert_close(moved.loss, result.loss, **TIGHT)
    torch.testing.assert_close(moved.advantage, result.advantage[index], **TIGHT)
    torch.testing.assert_close(moved_gradients["weight"], gradients["weight"], **TIGHT)
    torch.testing.assert_close(moved_gradients["hidden"], gradients["hidden"][index], **TIGHT)


def test_a_sequence_does_not_see_its_neighbours():
    """Other tokens, states and log-probs behind a sequence (as padding would be) leave its gradient alone."""
    batch = random_batch((4, 6, 5))
    other = random_batch((4, 6, 5), seed=9)
    keep = slice(4, 10)
    changed = replace(
        other,
        student_head=batch.student_head,
        teacher_head=batch.teacher_head,
        **{
            name: torch.cat([getattr(other, name)[:4], getattr(batch, name)[keep], getattr(other, name)[10:]])
            for name in ("student_hidden", "teacher_hidden", "tokens", "sampler_logprob", "behavior_logprob")
        },
    )
    first, second = (differentiate(minillm_loss, b, ObjectiveSettings()) for b in (batch, changed))
    torch.testing.assert_close(second[0].advantage[keep], first[0].advantage[keep], **TIGHT)
    torch.testing.assert_close(second[1]["hidden"][keep], first[1]["hidden"][keep], **TIGHT)


@pytest.mark.parametrize("rows", [(0, 3), (2, 0), (4, 1)])
@pytest.mark.parametrize("function", [minillm_loss, minillm_loss_dense])
def test_rows_that_pad_the_vocabulary_change_nothing(rows, function):
    """Unequal embeddings, one tokenizer: the softmaxes stop at V and the padding gets no gradient."""
    batch = random_batch(padding_rows=rows, bias=True)
    unpadded = replace(
        batch,
        student_head=Head(batch.student_head.weight[:11], batch.student_head.bias[:11]),
        teacher_head=Head(batch.teacher_head.weight[:11]),
    )
    settings = ObjectiveSettings()
    padded, gradients = differentiate(function, batch, settings)
    plain, plain_gradients = differentiate(function, unpadded, settings)
    torch.testing.assert_close(padded.loss, plain.loss, **TIGHT)
    torch.testing.assert_close(gradients["hidden"], plain_gradients["hidden"], **TIGHT)
    torch.testing.assert_close(gradients["weight"][:11], plain_gradients["weight"], **TIGHT)
    assert not gradients["weight"][11:].any()
    assert not gradients["bias"][11:].any()


@pytest.mark.parametrize("preset", ["default", "paper", "exact"])
@pytest.mark.parametrize("cuts", [[[0], [1, 2, 3]], [[3, 1], [2], [0]], [[0], [1], [2], [3]]])
def test_cutting_a_batch_changes_nothing_with_global_normalisers(preset, cuts):
    """Micro-batches, accumulation steps and ranks: the losses add up, and so do the gradients."""
    batch, settings = random_batch(), ObjectiveSettings(preset=preset)
    whole, gradients = differentiate(minillm_loss, batch, settings)
    parts = [sequences(batch, part) for part in cuts]
    normalizer = sum(settings.normalizer_share(len(p.tokens), len(p.cu_seqlens) - 1) for p in parts)
    made = [differentiate(minillm_loss, part, settings, normalizer=normalizer) for part in parts]
    torch.testing.assert_close(sum(result.loss for result, _ in made), whole.loss, **TIGHT)
    torch.testing.assert_close(sum(result.loss_long_term for result, _ in made), whole.loss_long_term, **TIGHT)
    torch.testing.assert_close(sum(grads["weight"] for _, grads in made), gradients["weight"], **TIGHT)


def test_mean_of_means_depends_on_the_cut_and_is_what_the_official_code_does():
    """tokens_microbatch: each call's own token mean, averaged over the calls."""
    batch, settings = random_batch(), ObjectiveSettings(loss_norm="tokens_microbatch")
    parts = [sequences(batch, part) for part in ([0], [1, 2, 3])]
    share = sum(settings.normalizer_share(len(p.tokens), len(p.cu_seqlens) - 1) for p in parts)
    assert share == 2
    losses = [minillm_loss(*p.arguments, settings, normalizer=share).loss for p in parts]
    means = [minillm_loss(*p.arguments, ObjectiveSettings()).loss for p in parts]
    torch.testing.assert_close(sum(losses), (means[0] + means[1]) / 2)


def test_a_call_without_tokens_has_a_loss_of_zero_that_can_be_differentiated():
    """A rank whose share of the batch is empty takes part in the collective backward all the same."""
    head = torch.randn(11, 5, dtype=DOUBLE, requires_grad=True)
    hidden = torch.zeros(0, 5, dtype=DOUBLE, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    teacher = torch.zeros(0, 6, dtype=DOUBLE)
    for preset in PRESETS:
        result = minillm_loss(
            hidden, head, teacher, torch.randn(11, 6, dtype=DOUBLE), empty, torch.tensor([0]), None, None,
            ObjectiveSettings(preset=preset), normalizer=17,
        )  # fmt: skip
        result.loss.backward()
        assert result.loss.item() == 0.0
        assert not head.grad.any()
        assert result.metrics["num_tokens"] == 0


def test_nothing_but_the_loss_carries_a_gradient():
    """Returns, weights and log-probs are detached: a gradient through the advantage would double the variance."""
    batch = random_batch()
    for function in (minillm_loss, minillm_loss_dense):
        result, _ = differentiate(function, batch, ObjectiveSettings())
        for name, value in vars(result).items():
            assert name == "loss" or value is None or not value.requires_grad, name


def test_arguments_are_not_changed_and_a_second_pass_gives_the_same():
    """Several epochs over one rollout batch reuse its tensors."""
    batch = random_batch(soft_cap=2.0, bias=True)
    before = [a.clone() for a in batch.arguments if isinstance(a, torch.Tensor)]
    weight = batch.student_head.weight.clone()
    first, second = (differentiate(minillm_loss, batch, ObjectiveSettings()) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert torch.equal(first[1]["weight"], second[1]["weight"])
    after = [a for a in batch.arguments if isinstance(a, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(weight, batch.student_head.weight)


def test_a_tied_head_adds_its_gradient_to_the_embeddings():
    """The head is the embedding: one leaf, used twice, gets both gradients."""
    batch = random_batch()
    gradients = {}
    for function in (minillm_loss, minillm_loss_dense):
        table = batch.student_head.weight.clone().requires_grad_()
        hidden = torch.tanh(table[batch.tokens])
        function(hidden, table, *batch.arguments[2:], ObjectiveSettings()).loss.backward()
        gradients[function] = table.grad
    torch.testing.assert_close(gradients[minillm_loss], gradients[minillm_loss_dense], **TIGHT)


def test_a_factor_on_the_loss_scales_its_gradients():
    """3 loss + 2 loss of another call, and a second backward through a kept graph."""
    batch = random_batch()
    _, gradients = differentiate(minillm_loss, batch, ObjectiveSettings())
    hidden = batch.student_hidden.clone().requires_grad_()
    loss = minillm_loss(hidden, *batch.arguments[1:], ObjectiveSettings()).loss
    (3 * loss).backward(retain_graph=True)
    torch.testing.assert_close(hidden.grad, 3 * gradients["hidden"])
    loss.backward()
    torch.testing.assert_close(hidden.grad, 4 * gradients["hidden"])


@pytest.mark.parametrize("leaves", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ()])
def test_only_what_requires_a_gradient_gets_one(leaves):
    """A frozen head or frozen body (LoRA, evaluation) costs no product and has no gradient."""
    batch, settings = random_batch(bias=True), ObjectiveSettings()
    whole, gradients = differentiate(minillm_loss, batch, settings)
    head = batch.student_head
    tensors = {"hidden": batch.student_hidden, "weight": head.weight, "bias": head.bias}
    tensors = {n: t.clone().requires_grad_() if n in leaves else t for n, t in tensors.items()}
    copy = Head(tensors["weight"], tensors["bias"])
    result = minillm_loss(tensors["hidden"], copy, *batch.arguments[2:], settings)
    torch.testing.assert_close(result.loss.detach(), whole.loss.detach(), **TIGHT)
    assert result.loss.requires_grad is bool(leaves)
    if leaves:
        result.loss.backward()
    for name, tensor in tensors.items():
        if name in leaves:
            torch.testing.assert_close(tensor.grad, gradients[name], **TIGHT)
        else:
            assert tensor.grad is None


class ProductCounter(TorchDispatchMode):
    """Counts matrix products and the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize(
    ("settings", "recorded", "products"),
    [
        pytest.param(ObjectiveSettings(), (True, True), 4, id="default"),
        pytest.param(ObjectiveSettings(preset="paper"), (True, True), 4, id="paper"),
        pytest.param(ObjectiveSettings(preset="exact"), (False, False), 4, id="exact_on_policy"),
        pytest.param(ObjectiveSettings(preset="exact"), (True, True), 5, id="exact_with_recorded_mixture"),
        pytest.param(ObjectiveSettings(preset="exact"), (True, False), 6, id="exact_with_formed_mixture"),
        pytest.param(ObjectiveSettings(whiten="valid"), (True, True), 6, id="whitening"),
    ],
)
def test_four_matrix_products_a_chunk(settings, recorded, products):
    """The floor of an exact full-vocabulary gradient; whitening and products of current ratios cost what they must."""
    batch = random_batch(recorded=recorded)
    hidden, weight = batch.student_hidden.clone().requires_grad_(), batch.student_head.weight.clone().requires_grad_()
    with chunks_of(5, 2), ProductCounter() as counter:
        minillm_loss(hidden, weight, *batch.arguments[2:], settings)
    assert counter.products == products * 5


def test_evaluation_makes_no_backward_product():
    """Under no_grad, or with nothing to differentiate, each head is multiplied once."""
    batch = random_batch()
    hidden = batch.student_hidden.clone().requires_grad_()
    with chunks_of(5), ProductCounter() as counter, torch.no_grad():
        result = minillm_loss(hidden, *batch.arguments[1:], ObjectiveSettings())
    assert counter.products == 2 * 5
    assert not result.loss.requires_grad
    trained, _ = differentiate(minillm_loss, batch, ObjectiveSettings())
    for name in ("loss", "kl", "advantage", "weight", "ratio", "clipped", "entropy"):
        torch.testing.assert_close(getattr(result, name), getattr(trained, name).detach(), **TIGHT)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_tensor_has_a_row_of_logits_for_each_token(preset):
    """The largest tensor of the walk holds a chunk's logits of both models and a tile, never [N, V]."""
    batch = random_batch((30, 40), vocab_size=50)
    hidden, weight = batch.student_hidden.clone().requires_grad_(), batch.student_head.weight.clone().requires_grad_()
    with chunks_of(6, 3), ProductCounter() as counter:
        minillm_loss(hidden, weight, *batch.arguments[2:], ObjectiveSettings(preset=preset)).loss.backward()
    assert counter.largest == (2 * 6 + 3) * 50


def test_autocast_does_not_lower_the_precision():
    """Log-softmaxes and sums are in fp32 also inside a bf16 autocast region."""
    batch = random_batch(dtype=torch.float32)
    plain, gradients = differentiate(minillm_loss, batch, ObjectiveSettings())
    for function in (minillm_loss, minillm_loss_dense):
        inside = torch.autocast("cpu", dtype=torch.bfloat16)(function)
        result, cast_gradients = differentiate(inside, batch, ObjectiveSettings())
        torch.testing.assert_close(result.loss, plain.loss)
        torch.testing.assert_close(cast_gradients, gradients)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("memory_mb", [1, 16, 256])
@pytest.mark.parametrize("vocab_size", [100, 32_000, 151_936])
@pytest.mark.parametrize("lent_rows", [0, 896])
def test_buffers_stay_within_the_memory_given(device, memory_mb, vocab_size, lent_rows):
    """Chunk and tile buffers together, down to the floor of one token."""
    chunking = choose_chunking(
        num_tokens=4096,
        vocab_size=vocab_size,
        dtype=torch.float32,
        device=torch.device(device),
        memory_mb=memory_mb,
        chunk_buffers=2,
        tile_buffers=1,
        lent_rows=lent_rows,
    )
    rows = chunking.rows(2, 1)
    assert 1 <= chunking.tile <= max(chunking.chunk, chunking.first) <= 4096
    assert chunking.first <= lent_rows
    assert rows * vocab_size * 4 <= memory_mb * 2**20 or chunking.chunk == 1


def test_lent_memory_saves_a_chunk_where_a_longer_first_one_does():
    """Qwen's vocabulary in three chunks for four, since the head's gradient holds the first one's teacher logits."""
    options = {
        "num_tokens": 1024,
        "vocab_size": 151_936,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "memory_mb": 304,
        "chunk_buffers": 2,
        "tile_buffers": 1,
    }
    assert list(choose_chunking(**options, lent_rows=896).backwards(1024)) == [(512, 1024), (256, 512), (0, 256)]
    assert len(list(choose_chunking(**options, lent_rows=0).backwards(1024))) == 4
    assert choose_chunking(**options, lent_rows=128).first == 0
