"""Plain text beside the responses: its loss is added with its coefficient, over its own tokens."""

import pytest
import torch
from scripted.models import make_trainer, tiny
from scripted.scored import label_loss, make_learner, random_sequences, score, token_logprobs

from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.objective import ObjectiveSettings

RESPONSES = random_sequences()
# A chunk of text is a trajectory of one prompt token: every other token is trained.
TEXTS = random_sequences(((1, 11), (1, 6), (1, 11)), seed=5)


def settings(**changes: float) -> ObjectiveSettings:
    return ObjectiveSettings.from_preset("default", alpha=0.0, **changes)


def teacher_model() -> torch.nn.Module:
    return tiny("llama", seed=7, hidden_size=24, num_hidden_layers=1).eval()


def forward_kl(model: torch.nn.Module, teacher: torch.nn.Module) -> float:
    """KL(p || q), the mean over all text tokens, from whole logits."""
    values = []
    for token_ids, prompt_length in TEXTS:
        log_q, log_p = (token_logprobs(one, token_ids, prompt_length) for one in (model, teacher))
        values.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_the_text_loss_is_the_label_loss_and_is_added_with_its_coefficient(budget: int) -> None:
    """Reported before the coefficient; the total has it, whatever micro_batch_tokens is."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model), teacher, settings=settings(lm_coef=0.5), micro_batch_tokens=budget)
    expected = label_loss(model, TEXTS)
    report = learner.step(score(model, teacher, RESPONSES), score(model, teacher, TEXTS))
    numbers = finish_step(report.metrics)
    assert numbers["objective/loss/text"] == pytest.approx(expected, rel=1e-5)
    halves = numbers["objective/loss/single_step"] + numbers["objective/loss/long_term"]
    assert numbers["objective/loss/total"] == pytest.approx(halves + 0.5 * expected, rel=1e-5)


def test_text_may_lean_on_the_teacher() -> None:
    """text_kd_ratio mixes in KL(p || q) at each token of the text."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model), teacher, settings=settings(text_kd_ratio=0.25))
    expected = 0.75 * label_loss(model, TEXTS) + 0.25 * forward_kl(model, teacher)
    report = learner.step(score(model, teacher, RESPONSES), score(model, teacher, TEXTS))
    assert finish_step(report.metrics)["objective/loss/text"] == pytest.approx(expected, rel=1e-4)


def test_text_changes_the_gradient_but_none_of_the_responses_numbers() -> None:
    """Divergence, lengths and losses of the responses are as without it."""
    results = []
    for texts in ((), TEXTS):
        model, teacher = tiny("llama"), teacher_model()
        learner = make_learner(make_trainer(model), teacher)
        report = learner.step(score(model, teacher, RESPONSES), score(model, teacher, list(texts)))
        results.append((report.outcome.gradient_norm, finish_step(report.metrics)))
    (plain_norm, plain), (norm, numbers) = results
    assert norm != pytest.approx(plain_norm, rel=1e-3)
    for name in set(plain) - {"objective/loss/total"}:
        assert numbers[name] == pytest.approx(plain[name], rel=1e-6), name
    assert set(numbers) - set(plain) == {"objective/loss/text"}


def test_a_step_may_be_text_alone() -> None:
    """As a rank has it whose share of a small minibatch is empty: its norm is the label loss's own."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model), teacher)
    report = learner.step([], score(model, teacher, TEXTS))
    assert report.outcome.applied
    numbers = finish_step(combine_step([report.metrics]))
    assert numbers["objective/loss/total"] == numbers["objective/loss/text"]
    assert label_loss(model, TEXTS) < numbers["objective/loss/text"]
