"""MiniLLM's step on tiny models: it does what the dense definition says, and it brings the student nearer."""

import numpy as np
import pytest
import torch
from scripted.models import VOCABULARY, make_trainer, tiny
from scripted.scored import LENGTHS, dense_kl, draw, make_learner, random_sequences, score, token_logprobs

from minillm_ray.engines.heads import model_head
from minillm_ray.learner.distillation import DistillationLearner
from minillm_ray.learner.step_metrics import finish_step
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.telemetry.reductions import Mean

SEQUENCES = random_sequences()
NUM_TOKENS = sum(response for _, response in LENGTHS)


def teacher_model() -> torch.nn.Module:
    return tiny("llama", seed=7, hidden_size=24, num_hidden_layers=1).eval()


@pytest.mark.parametrize("student", ["llama", "gpt2", "gemma2", "granite", "phi"])
def test_the_reported_divergence_is_that_of_whole_logits(student: str) -> None:
    """KL(q || p) over the full vocabulary at each response token, for every head the student may have."""
    model, teacher = tiny(student), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    expected = torch.cat(dense_kl(model, teacher, SEQUENCES))
    report = make_learner(make_trainer(model), teacher).step(scored)
    numbers = finish_step(report.metrics)
    assert numbers["objective/kl_nats_per_token/mean"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert float(expected.mean()) > 0.05
    assert numbers["learner/sampler_mismatch_nats/max"] < 1e-4
    assert numbers["objective/ratio/mean"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("teacher", ["gemma2", "granite", "phi"])
def test_the_teachers_head_is_taken_whole(teacher: str) -> None:
    """Its soft cap, scale and bias are part of p."""
    model, other = tiny("llama"), tiny(teacher, seed=5).eval()
    learner = DistillationLearner(
        make_trainer(model),
        teacher_head=model_head(other, vocabulary_size=VOCABULARY),
        settings=ObjectiveSettings.from_preset("default", alpha=0.0),
        micro_batch_tokens=64,
        samples_per_step=0,
    )
    expected = torch.cat(dense_kl(model, other, SEQUENCES))
    found = learner.divergence(score(model, other, SEQUENCES))
    assert found.value == pytest.approx(float(expected.mean()), rel=1e-4)


def test_the_exact_half_alone_brings_the_student_nearer_on_the_responses_it_is_given() -> None:
    """gamma 0 is plain reverse KL at each given state: a dozen steps more than halve it."""
    model, teacher = tiny("llama"), teacher_model()
    settings = ObjectiveSettings.from_preset("default", alpha=0.0, gamma=0.0)
    learner = make_learner(make_trainer(model, learning_rate=3e-2), teacher, settings=settings)
    before = learner.divergence(score(model, teacher, SEQUENCES)).value
    for _ in range(12):
        assert learner.step(score(model, teacher, SEQUENCES)).outcome.applied
    assert learner.divergence(score(model, teacher, SEQUENCES)).value < 0.5 * before


def test_a_few_steps_on_its_own_responses_bring_the_student_nearer_to_the_teacher() -> None:
    """The whole objective, on responses that the student draws anew for each step; measured on draws never trained."""
    model, teacher = tiny("llama"), teacher_model()
    learner = make_learner(make_trainer(model, learning_rate=2e-2), teacher)

    def divergence() -> float:
        return learner.divergence(score(model, teacher, draw(model, seed=1000, num_sequences=32))).value

    before = divergence()
    for step in range(15):
        learner.step(score(model, teacher, draw(model, seed=step)))
    assert divergence() < 0.75 * before


def test_a_student_that_is_the_teacher_is_left_alone() -> None:
    """No divergence, no loss, no gradient, wherever the responses come from."""
    model = tiny("llama", seed=7)
    report = make_learner(make_trainer(model), tiny("llama", seed=7)).step(score(model, model, SEQUENCES))
    numbers = finish_step(report.metrics)
    assert numbers["objective/kl_nats_per_token/mean"] == pytest.approx(0.0, abs=1e-6)
    assert numbers["objective/loss/total"] == pytest.approx(0.0, abs=1e-6)
    assert report.outcome.gradient_norm < 1e-5


@pytest.mark.parametrize("loss_norm", ["tokens_global", "sequences"])
def test_a_step_does_not_depend_on_micro_batch_tokens(loss_norm: str) -> None:
    """Gradient norm, every metric and every weight, within rounding."""
    settings = ObjectiveSettings.from_preset("default", alpha=0.0, loss_norm=loss_norm)
    results = []
    for budget in (1000, 20, 1):
        model, teacher = tiny("llama"), teacher_model()
        scored = score(model, teacher, SEQUENCES)
        learner = make_learner(make_trainer(model), teacher, micro_batch_tokens=budget, settings=settings)
        reports = [learner.step(scored) for _ in range(2)]
        norms = [report.outcome.gradient_norm for report in reports]
        results.append((norms, finish_step(reports[1].metrics), dict(learner.trainer.student.named_weights())))
    for norms, numbers, weights in results[1:]:
        assert norms == pytest.approx(results[0][0], rel=1e-4)
        assert numbers == pytest.approx(results[0][1], rel=1e-4, abs=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][2][name], atol=5e-6, rtol=1e-5)


def test_lengths_and_truncation_are_those_of_the_responses() -> None:
    """EOS included; a response counts as truncated when its sampler said so."""
    model, teacher = tiny("llama"), teacher_model()
    numbers = finish_step(make_learner(make_trainer(model), teacher).step(score(model, teacher, SEQUENCES)).metrics)
    assert numbers["rollout/response_tokens/mean"] == pytest.approx(NUM_TOKENS / len(LENGTHS))
    assert numbers["rollout/truncated_fraction/mean"] == pytest.approx(1 / 5)


def test_samples_are_the_first_trajectories_with_their_own_numbers() -> None:
    """In the order given, although micro-batches are cut by length; token by token."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    expected = dense_kl(model, teacher, SEQUENCES)
    logprobs = [
        [
            token_logprobs(one, token_ids, prompt).gather(1, token_ids[prompt:, None])[:, 0]
            for token_ids, prompt in SEQUENCES
        ]
        for one in (model, teacher)
    ]
    samples = make_learner(make_trainer(model), teacher, micro_batch_tokens=12, samples_per_step=3).step(scored).samples
    assert [sample.trajectory for sample in samples] == [trajectory for trajectory, _ in scored[:3]]
    for number, sample in enumerate(samples):
        np.testing.assert_allclose(sample.kl, expected[number], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(sample.student_logprob, logprobs[0][number], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sample.teacher_logprob, logprobs[1][number], rtol=1e-4, atol=1e-4)


def test_measuring_trains_nothing() -> None:
    """Weights, gradients and the number of steps stay as they are; the mean is over all response tokens."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    learner = make_learner(make_trainer(model), teacher, micro_batch_tokens=12)
    before = {name: tensor.clone() for name, tensor in learner.trainer.student.named_weights()}
    graphs: list[bool] = []
    model.model.register_forward_hook(lambda _, __, output: graphs.append(output.last_hidden_state.requires_grad))
    found = learner.divergence(scored)
    assert (found.count, found.sum) == (
        NUM_TOKENS,
        pytest.approx(float(torch.cat(dense_kl(model, teacher, SEQUENCES)).sum()), rel=1e-4),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.trainer.student.named_weights())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert learner.trainer.num_steps == 0
    assert graphs
    assert not any(graphs)  # nothing is kept for a backward pass that never comes


def test_an_empty_share_is_measured_as_nothing() -> None:
    """A rank may have no responses of a small batch."""
    learner = make_learner(make_trainer(tiny("llama")), teacher_model())
    assert learner.divergence([]) == Mean(0.0, 0.0)
    report = learner.step([])
    assert report.metrics["rollout/response_tokens/mean"] == Mean(0.0, 0.0)
    assert report.samples == ()


def test_a_sampler_at_other_weights_shows_as_mismatch_and_ratio() -> None:
    """What the tokens were drawn with comes from the trajectory, what is trained from the current weights."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(tiny("llama", seed=3), teacher, SEQUENCES)
    numbers = finish_step(make_learner(make_trainer(model), teacher).step(scored).metrics)
    assert numbers["learner/sampler_mismatch_nats/mean"] > 0.1
    assert numbers["objective/ratio/max"] > 1.1
