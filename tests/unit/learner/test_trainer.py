"""One optimizer step is the same however its batch was cut, and a bad gradient changes nothing."""

import math

import numpy as np
import pytest
import torch
from scripted.models import VOCABULARY, head_logits, make_trainer, tiny
from scripted.scored import random_sequences
from torch import Tensor

from minillm_ray.learner.micro_batches import MicroBatch, collate, split_by_tokens
from minillm_ray.learner.student import Student
from minillm_ray.learner.trainer import StudentTrainer
from minillm_ray.objective import Head

SEQUENCES = random_sequences()
NUM_TOKENS = sum(len(token_ids) - prompt for token_ids, prompt in SEQUENCES)


def batches_of(budget: int, *, pad_id: int = 0) -> list[MicroBatch]:
    arrays = [token_ids.numpy() for token_ids, _ in SEQUENCES]
    prompts = [prompt for _, prompt in SEQUENCES]
    groups = split_by_tokens([len(array) for array in arrays], budget)
    return [collate(arrays, prompts, group, pad_id=pad_id) for group in groups]


def cross_entropy(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
    """A sum over this micro-batch, divided by the tokens of the whole batch."""
    logits = head_logits(hidden, head)
    return torch.nn.functional.cross_entropy(logits, batch.tokens, reduction="sum") / NUM_TOKENS


def weights_of(trainer: StudentTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.student.named_weights()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], *, within: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=within, rtol=within)


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_does_not_depend_on_how_the_batch_was_cut(architecture: str) -> None:
    """One padded batch, several, or one sequence at a time: the same gradient norm and the same weights."""
    results = []
    for budget in (1000, 20, 1):
        trainer = make_trainer(tiny(architecture))
        before = weights_of(trainer)
        batches = batches_of(budget)
        outcomes = [trainer.step(batches, cross_entropy) for _ in range(2)]
        results.append((len(batches), [outcome.gradient_norm for outcome in outcomes], weights_of(trainer)))
        assert moved(before, results[-1][2]) > 0.01
    assert [count for count, _, _ in results] == [1, 3, 5]
    for _, norms, weights in results[1:]:
        assert norms == pytest.approx(results[0][1], rel=1e-5)
        assert_same(weights, results[0][2], within=2e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_stands_in_the_padding_does_not_matter(architecture: str) -> None:
    """No real token attends to it and no gradient comes from it: the step is the same to the last bit but rounding."""
    results = []
    for pad_id in (0, VOCABULARY - 1):
        trainer = make_trainer(tiny(architecture))
        outcome = trainer.step(batches_of(1000, pad_id=pad_id), cross_entropy)
        results.append((outcome.gradient_norm, weights_of(trainer)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert_same(results[0][1], results[1][1], within=1e-6)


def test_longer_neighbours_do_not_change_a_sequence() -> None:
    """The loss of a padded sequence is what it is alone."""
    student = Student(tiny("llama"), vocabulary_size=VOCABULARY)
    (together,) = batches_of(1000)
    arrays, prompts = [ids.numpy() for ids, _ in SEQUENCES], [prompt for _, prompt in SEQUENCES]
    packed = student(together.input_ids, together.slots, head_logits)
    for place, member in enumerate(together.members):
        alone = collate(arrays, prompts, [member])
        expected = student(alone.input_ids, alone.slots, head_logits)
        found = packed[together.cu_seqlens[place] : together.cu_seqlens[place + 1]]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_stand_in_for_a_missing_micro_batch_adds_nothing() -> None:
    """A rank with fewer micro-batches than another takes part all the same: every gradient is there, and zero."""
    trainer = make_trainer(tiny("llama"))
    trainer.forward(None, cross_entropy).backward()
    gradients = [parameter.grad for parameter in trainer.student.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_step_without_micro_batches_leaves_the_weights_alone() -> None:
    """Its norm is 0; it counts as a step."""
    trainer = make_trainer(tiny("llama"))
    before = weights_of(trainer)
    assert trainer.step([], cross_entropy).gradient_norm == 0.0
    assert_same(weights_of(trainer), before)
    assert trainer.num_steps == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_optimizer(bad: float) -> None:
    """After it, a good step does what it would have done without it. 1e30 is finite, but its square is not."""

    def spoilt(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
        return cross_entropy(batch, hidden, head) * bad

    spoiled, spared = make_trainer(tiny("llama")), make_trainer(tiny("llama"))
    for trainer in (spoiled, spared):
        trainer.step(batches_of(1000), cross_entropy)
    before = weights_of(spoiled)
    outcome = spoiled.step(batches_of(24), spoilt)
    assert not outcome.applied
    assert not math.isfinite(outcome.gradient_norm)
    assert_same(weights_of(spoiled), before)
    for trainer in (spoiled, spared):
        assert trainer.step(batches_of(1000), cross_entropy).applied
    assert_same(weights_of(spoiled), weights_of(spared))
    assert (spoiled.num_steps, spared.num_steps) == (3, 2)


def test_one_bad_micro_batch_spoils_its_step_alone() -> None:
    """The good ones beside it are not applied either: half a batch is another objective."""
    trainer = make_trainer(tiny("llama"))
    before = weights_of(trainer)
    batches = batches_of(24)

    def last_is_bad(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
        return cross_entropy(batch, hidden, head) * (math.nan if batch is batches[-1] else 1.0)

    assert not trainer.step(batches, last_is_bad).applied
    assert_same(weights_of(trainer), before)
    assert trainer.step(batches, cross_entropy).applied


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    """Without a gradient, decay alone moves a weight: by learning rate x decay, and only where there are two axes."""
    trainer = make_trainer(tiny("gpt2"), learning_rate=0.1, weight_decay=0.5)
    before = weights_of(trainer)

    def nothing(batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
        return hidden.sum() * 0.0

    trainer.step(batches_of(1000), nothing)
    after = weights_of(trainer)
    for name, weight in before.items():
        factor = 1 - 0.1 * 0.5 if weight.ndim > 1 else 1.0
        torch.testing.assert_close(after[name], weight * factor)
    assert {weight.ndim for weight in before.values()} == {1, 2}


def test_the_gradient_is_clipped_once_to_the_whole_norm() -> None:
    """The norm that is reported is the one before; below the bound nothing is scaled."""
    seen = []
    for bound in (1e9, 1e-3):
        trainer = make_trainer(tiny("llama"), max_gradient_norm=bound)
        norms: list[float] = []
        trainer.optimizer.register_step_pre_hook(
            lambda *_, trainer=trainer, norms=norms: norms.append(_norm_of(trainer.student))
        )
        outcome = trainer.step(batches_of(24), cross_entropy)
        seen.append((outcome.gradient_norm, norms))
    (free, free_applied), (clipped, clipped_applied) = seen
    assert free == pytest.approx(clipped)
    assert free_applied == pytest.approx([free], rel=1e-4)
    assert clipped_applied == pytest.approx([1e-3], rel=1e-2)


def _norm_of(student: Student) -> float:
    return float(np.sqrt(sum(float(p.grad.square().sum()) for p in student.parameters() if p.grad is not None)))


def test_gradients_do_not_leak_from_one_step_into_the_next() -> None:
    """A step and the same step after another model-changing one both see their own gradient alone."""
    trainer = make_trainer(tiny("llama"), learning_rate=0.0)
    norms = [trainer.step(batches_of(24), cross_entropy).gradient_norm for _ in range(2)]
    assert norms[0] == norms[1]


def test_the_learning_rate_is_that_of_the_schedule_at_each_step() -> None:
    """Counted from 0; the first step of a warm-up already moves the weights."""
    from minillm_ray.learner.schedule import LearningRateSchedule

    trainer = make_trainer(tiny("llama"))
    trainer._schedule = LearningRateSchedule(peak=0.03, warmup_steps=3, steps=9, shape="constant", final=0.0)
    before = weights_of(trainer)
    outcomes = [trainer.step(batches_of(1000), cross_entropy) for _ in range(1)]
    assert moved(before, weights_of(trainer)) > 1e-3
    outcomes += [trainer.step(batches_of(1000), cross_entropy) for _ in range(3)]
    assert [outcome.learning_rate for outcome in outcomes] == pytest.approx([0.01, 0.02, 0.03, 0.03])


def test_weights_that_are_frozen_stay_as_they_are() -> None:
    """And have no part in the norm."""
    model = tiny("llama")
    model.get_input_embeddings().weight.requires_grad_(False)
    trainer = make_trainer(model, weight_decay=0.5)
    before = weights_of(trainer)
    trainer.step(batches_of(1000), cross_entropy)
    after = weights_of(trainer)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
