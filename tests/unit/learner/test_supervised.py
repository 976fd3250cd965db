"""Supervised loss is transformers' own label loss, on any architecture, however the batch is cut."""

import pytest
import torch
from scripted.models import VOCABULARY, make_trainer, tiny
from scripted.scored import label_loss, random_sequences, supervised_set

from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.supervised import SupervisedLearner

TRAIN = random_sequences(seed=1)
HELD_OUT = random_sequences(((2, 4), (5, 5), (1, 1)), seed=2)
ARCHITECTURES = ["llama", "gpt2", "gemma2", "granite", "phi"]


def make_learner(
    model: torch.nn.Module, *, micro_batch_tokens: int = 64, rank: Rank | None = None
) -> SupervisedLearner:
    return SupervisedLearner(
        make_trainer(model, rank=rank),
        train=supervised_set(TRAIN),
        validation=supervised_set(HELD_OUT),
        micro_batch_tokens=micro_batch_tokens,
        logits_memory_mb=1,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_a_step_is_the_label_loss_before_it(architecture: str) -> None:
    """Of exactly the rows asked for: response tokens alone, no prompt and no padding."""
    model = tiny(architecture)
    rows = [3, 0, 4]
    expected = label_loss(model, [TRAIN[row] for row in rows])
    loss, outcome = make_learner(model).step(rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert outcome.applied
    assert label_loss(model, [TRAIN[row] for row in rows]) < expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_is_that_of_the_label_loss(architecture: str) -> None:
    """Norm before clipping, over all parameters; a tied head counts once."""
    model = tiny(architecture)
    token_ids, prompt_length = TRAIN[1]
    labels = token_ids.clone()
    labels[:prompt_length] = -100
    model(input_ids=token_ids[None], labels=labels[None]).loss.backward()
    expected = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    model.zero_grad()
    _, outcome = make_learner(model).step([1])
    assert outcome.gradient_norm == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_the_validation_loss_is_the_label_loss_of_the_held_out_rows(architecture: str, budget: int) -> None:
    """Whatever micro_batch_tokens is; nothing is trained."""
    model = tiny(architecture)
    learner = make_learner(model, micro_batch_tokens=budget)
    before = {name: tensor.clone() for name, tensor in learner.trainer.student.named_weights()}
    graphs: list[bool] = []
    model.get_decoder().register_forward_hook(lambda _, __, out: graphs.append(out.last_hidden_state.requires_grad))
    assert learner.validation_loss() == pytest.approx(label_loss(model, HELD_OUT), rel=1e-5)
    assert not graphs[0]  # nothing is kept for a backward pass that never comes
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.trainer.student.named_weights())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_does_not_depend_on_micro_batch_tokens() -> None:
    """Loss, gradient norm and weights, within rounding."""
    results = []
    for budget in (1000, 20, 1):
        learner = make_learner(tiny("llama"), micro_batch_tokens=budget)
        steps = [learner.step(range(len(TRAIN))) for _ in range(2)]
        losses, norms = [loss for loss, _ in steps], [outcome.gradient_norm for _, outcome in steps]
        results.append((losses, norms, dict(learner.trainer.student.named_weights())))
    for losses, norms, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        assert norms == pytest.approx(results[0][1], rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][2][name], atol=5e-6, rtol=1e-5)


class OneOfTwo(Rank):
    """A rank that hears nothing from the other."""

    def sum(self, values: list[float]) -> list[float]:
        return values

    def max(self, values: list[float]) -> list[float]:
        return values


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_trains_and_measures_its_own_rows_alone(index: int) -> None:
    """Every second one, beginning with its own number: no work is done twice."""
    model = tiny("llama")
    rank = OneOfTwo(index, 2, torch.device("cpu"), in_group=False)
    learner = make_learner(model, rank=rank)
    assert learner.validation_loss() == pytest.approx(label_loss(model, HELD_OUT[index::2]), rel=1e-5)
    expected = label_loss(model, [TRAIN[row] for row in (4, 0, 2)[index::2]])
    assert learner.step([4, 0, 2])[0] == pytest.approx(expected, rel=1e-5)


def test_rows_that_pad_the_head_take_no_probability() -> None:
    """The loss over a padded embedding is that of the same model without its padding rows, and they get no gradient."""
    padded = tiny("llama", vocab_size=VOCABULARY + 16)
    plain = tiny("llama")
    weights = padded.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:VOCABULARY]
    plain.load_state_dict(weights)
    before = padded.lm_head.weight[VOCABULARY:].clone()
    loss, _ = make_learner(padded).step([0, 1])
    assert loss == pytest.approx(label_loss(plain, [TRAIN[0], TRAIN[1]]), rel=1e-5)
    assert torch.equal(padded.lm_head.weight[VOCABULARY:], before)


def test_a_few_epochs_learn_the_rows() -> None:
    """The loss falls to a fraction."""
    learner = make_learner(tiny("llama"))
    losses = [learner.step(range(len(TRAIN)))[0] for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
