"""A step with each kind of payload: what it reports, what it may be asked for, what is kept of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scripted.models import VOCABULARY, make_trainer, tiny
from scripted.scored import dense_kl, draw, make_learner, random_sequences, score

from minillm_ray.engines.heads import model_head
from minillm_ray.engines.hidden_payload import decode_hidden
from minillm_ray.engines.sampled_payload import encode_sampled
from minillm_ray.engines.topk_payload import encode_topk
from minillm_ray.learner.bad_batch import write_bad_batch
from minillm_ray.learner.scored_batch import Scored
from minillm_ray.learner.step_metrics import finish_step
from minillm_ray.objective import Head, ObjectiveSettings
from minillm_ray.telemetry.declarations import METRICS

SEQUENCES = random_sequences()
SAMPLED = ObjectiveSettings.from_preset("default", alpha=0.0, later_reward="sampled")
AGREEMENT = {f"objective/topk_{name}/mean" for name in ("student_mass", "teacher_mass", "overlap")}


def teacher_model() -> torch.nn.Module:
    return tiny("llama", seed=7, hidden_size=24, num_hidden_layers=1).eval()


def as_top_k(scored: list[Scored], teacher: torch.nn.Module, k: int) -> list[Scored]:
    """The same trajectories with the teacher's k most probable tokens."""
    return [
        (
            trajectory,
            encode_topk(decode_hidden(payload), head_of(teacher), trajectory.response_ids, temperature=1.0, k=k),
        )
        for trajectory, payload in scored
    ]


def as_samples(scored: list[Scored], teacher: torch.nn.Module) -> list[Scored]:
    """The same trajectories with log p of their own tokens."""
    return [
        (trajectory, encode_sampled(decode_hidden(payload), head_of(teacher), trajectory.response_ids, temperature=1.0))
        for trajectory, payload in scored
    ]


def head_of(teacher: torch.nn.Module) -> Head:
    return model_head(teacher, vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("micro_batch_tokens", [12, 1000])
def test_a_step_on_the_whole_vocabulary_as_top_k_is_the_exact_step(micro_batch_tokens: int) -> None:
    """The same numbers and the same weights afterwards as with hidden states, and full agreement."""
    results = []
    for as_payload in (lambda scored, _: scored, lambda scored, teacher: as_top_k(scored, teacher, VOCABULARY)):
        model, teacher = tiny("llama"), teacher_model()
        learner = make_learner(make_trainer(model), teacher, micro_batch_tokens=micro_batch_tokens)
        report = learner.step(as_payload(score(model, teacher, SEQUENCES), teacher))
        results.append((finish_step(report.metrics), dict(learner.trainer.student.named_weights())))
    (exact, exact_weights), (whole, weights) = results
    assert {name: whole.pop(name) for name in AGREEMENT} == pytest.approx(dict.fromkeys(AGREEMENT, 1.0))
    assert whole == pytest.approx(exact, rel=1e-3, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, exact_weights[name], atol=1e-5, rtol=1e-4)


def test_a_top_k_step_reports_a_lower_bound_and_how_far_the_k_cover_both_models() -> None:
    """Below the exact divergence, with masses and overlap under declared names."""
    model, teacher = tiny("llama"), teacher_model()
    expected = torch.cat(dense_kl(model, teacher, SEQUENCES))
    scored = as_top_k(score(model, teacher, SEQUENCES), teacher, 8)
    numbers = finish_step(make_learner(make_trainer(model), teacher, micro_batch_tokens=20).step(scored).metrics)
    assert 0 < numbers["objective/kl_nats_per_token/mean"] < float(expected.mean())
    assert set(METRICS) >= set(numbers) >= AGREEMENT
    assert all(0 < numbers[name] < 1 for name in AGREEMENT)
    teacher_mass = np.concatenate([np.exp(payload.logprob).sum(1) for _, payload in scored])
    assert numbers["objective/topk_teacher_mass/mean"] == pytest.approx(float(teacher_mass.mean()), rel=1e-5)


def test_whole_distributions_have_no_agreement_to_report() -> None:
    """Neither hidden states nor sampled tokens name a top k."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    for some in (scored, as_samples(scored, teacher)):
        report = make_learner(make_trainer(tiny("llama")), teacher, settings=SAMPLED).step(some)
        assert not AGREEMENT & set(report.metrics)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_a_few_steps_bring_the_student_nearer_to_the_teacher(kind: str) -> None:
    """Trained on less than the whole teacher, measured with all of it on draws never trained."""
    model, teacher = tiny("llama"), teacher_model()
    settings = SAMPLED if kind == "sampled" else None
    learner = make_learner(make_trainer(model, learning_rate=2e-2), teacher, settings=settings)

    def divergence() -> float:
        return learner.divergence(score(model, teacher, draw(model, seed=1000, num_sequences=32))).value

    before = divergence()
    for step in range(15):
        scored = score(model, teacher, draw(model, seed=step))
        report = learner.step(as_top_k(scored, teacher, 8) if kind == "topk" else as_samples(scored, teacher))
        assert report.outcome.applied
    assert divergence() < 0.8 * before


def test_the_probe_reads_every_payload() -> None:
    """The long-term gradient has a signal-to-noise ratio whatever is known of the teacher."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    for some in (scored, as_top_k(scored, teacher, 8), as_samples(scored, teacher)):
        learner = make_learner(make_trainer(tiny("llama")), teacher, settings=SAMPLED, probe_every=1)
        assert "objective/long_term_gradient_snr/probe" in learner.step(some).metrics


def test_payloads_of_two_kinds_are_refused() -> None:
    """A minibatch is scored by one teacher, in one way."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    mixed = scored[:1] + as_samples(scored[1:], teacher)
    with pytest.raises(TypeError, match="payloads of HiddenPayload and SampledPayload; expected one kind"):
        make_learner(make_trainer(model), teacher, settings=SAMPLED).step(mixed)


def test_an_exact_divergence_needs_hidden_states() -> None:
    """A bound or an estimate is not what was asked for."""
    model, teacher = tiny("llama"), teacher_model()
    some = as_top_k(score(model, teacher, SEQUENCES), teacher, 8)
    with pytest.raises(TypeError, match=r"the exact divergence needs hidden states .* a payload is a TopKPayload"):
        make_learner(make_trainer(model), teacher).divergence(some)


def test_text_that_leans_on_the_teacher_needs_hidden_states() -> None:
    """KL(p || q) is an average under the whole teacher; without that share the payload of text is not read."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES)
    texts = as_samples(scored[:1], teacher)
    leaning = ObjectiveSettings.from_preset("default", alpha=0.0, text_kd_ratio=0.5)
    with pytest.raises(TypeError, match=r"text_kd_ratio above 0 needs hidden states .* a payload is a SampledPayload"):
        make_learner(make_trainer(model), teacher, settings=leaning).step(scored, texts)
    assert make_learner(make_trainer(model), teacher).step(scored, texts).outcome.applied


def test_a_bad_batch_keeps_the_payload_of_every_kind(tmp_path: Path) -> None:
    """All its arrays, under their names."""
    model, teacher = tiny("llama"), teacher_model()
    scored = score(model, teacher, SEQUENCES[:2])
    for some in (scored, as_top_k(scored, teacher, 8), as_samples(scored, teacher)):
        write_bad_batch(tmp_path / "b.safetensors", some)
        arrays = load_file(tmp_path / "b.safetensors")
        for number, (_, payload) in enumerate(some):
            for name, array in payload.arrays.items():
                np.testing.assert_array_equal(arrays[f"{number}.{name}"], array)
