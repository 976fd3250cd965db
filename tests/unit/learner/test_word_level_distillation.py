"""Word-level distillation is the text term alone: a mix of cross-entropy and forward KL, as whole logits define it."""

import pytest
import torch
from scripted.models import make_trainer, tiny
from scripted.scored import label_loss, make_learner, random_sequences, score, token_logprobs

from minillm_ray.learner.step_metrics import finish_step
from minillm_ray.objective import ObjectiveSettings

TRAIN = random_sequences(seed=1)
HELD_OUT = random_sequences(((2, 4), (5, 5), (1, 1)), seed=2)


def settings(kd_ratio: float) -> ObjectiveSettings:
    return ObjectiveSettings(alpha=0.0, text_kd_ratio=kd_ratio)


def teacher_model() -> torch.nn.Module:
    return tiny("llama", seed=7, hidden_size=24, num_hidden_layers=1).eval()


def dense_loss(model: torch.nn.Module, teacher: torch.nn.Module, pairs: list, kd_ratio: float) -> float:
    """(1 - kd_ratio) (-log q(y)) + kd_ratio KL(p || q), the mean over all response tokens, from whole logits."""
    values = []
    for token_ids, prompt_length in pairs:
        log_q, log_p = (token_logprobs(one, token_ids, prompt_length) for one in (model, teacher))
        nll = -log_q.gather(1, token_ids[prompt_length:, None])[:, 0]
        values.append((1 - kd_ratio) * nll + kd_ratio * (log_p.exp() * (log_p - log_q)).sum(-1))
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("kd_ratio", [0.25, 1.0])
def test_the_loss_of_a_step_is_the_dense_one(architecture: str, kd_ratio: float) -> None:
    """Over response tokens alone; the step makes it smaller."""
    model, teacher = tiny(architecture), teacher_model()
    learner = make_learner(make_trainer(model), teacher, settings=settings(kd_ratio))
    expected = dense_loss(model, teacher, TRAIN, kd_ratio)
    report = learner.step([], score(model, teacher, TRAIN))
    assert finish_step(report.metrics)["objective/loss/text"] == pytest.approx(expected, rel=1e-4)
    assert report.outcome.applied
    assert dense_loss(model, teacher, TRAIN, kd_ratio) < expected


@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_the_loss_over_other_pairs_is_the_dense_one_and_trains_nothing(budget: int) -> None:
    """Whatever micro_batch_tokens is: the sum and its tokens, for ranks to combine."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model), teacher, settings=settings(0.5), micro_batch_tokens=budget)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = learner.text_loss(score(model, teacher, HELD_OUT))
    assert found.count == sum(len(token_ids) - prompt_length for token_ids, prompt_length in HELD_OUT)
    assert found.value == pytest.approx(dense_loss(model, teacher, HELD_OUT, 0.5), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_coefficient_of_the_step_is_not_in_the_measured_loss() -> None:
    """lm_coef weighs the term beside others; alone it means nothing."""
    model, teacher = tiny("llama"), teacher_model()
    weighted = ObjectiveSettings(alpha=0.0, text_kd_ratio=0.5, lm_coef=0.25)
    learner = make_learner(make_trainer(model), teacher, settings=weighted)
    expected = dense_loss(model, teacher, HELD_OUT, 0.5)
    assert learner.text_loss(score(model, teacher, HELD_OUT)).value == pytest.approx(expected, rel=1e-4)


def test_a_step_does_not_depend_on_micro_batch_tokens() -> None:
    """One normaliser for the whole step: the gradient is that of the mean over all tokens."""
    norms = []
    for budget in (1000, 20, 1):
        model, teacher = tiny("llama"), teacher_model()
        learner = make_learner(make_trainer(model), teacher, settings=settings(0.5), micro_batch_tokens=budget)
        norms.append(learner.step([], score(model, teacher, TRAIN)).outcome.gradient_norm)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_it_brings_the_student_to_the_teacher_and_not_to_the_labels() -> None:
    """With kd_ratio 1 the labels, random here, are not learnt: their cross-entropy stays, forward KL falls."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model, learning_rate=3e-2), teacher, settings=settings(1.0))
    before, labels_before = dense_loss(model, teacher, TRAIN, 1.0), label_loss(model, TRAIN)
    for _ in range(12):
        learner.step([], score(model, teacher, TRAIN))
    assert dense_loss(model, teacher, TRAIN, 1.0) < 0.5 * before
    assert label_loss(model, TRAIN) > 0.9 * labels_before
