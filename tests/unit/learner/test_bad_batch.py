"""A step whose gradient is not finite is skipped, and what it was made of is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scripted.models import make_trainer, tiny
from scripted.scored import make_learner, random_sequences, score

from minillm_ray.engines.hidden_payload import encode_hidden
from minillm_ray.learner.bad_batch import write_bad_batch
from minillm_ray.learner.distillation import DistillationLearner

SEQUENCES = random_sequences()


def poisoned(path: Path | None) -> tuple[DistillationLearner, torch.nn.Module, torch.nn.Module]:
    """A learner whose student has a weight that is not finite."""
    model, teacher = tiny("llama"), tiny("llama", seed=7).eval()
    learner = make_learner(make_trainer(model), teacher, micro_batch_tokens=20, bad_batch_file=path)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    return learner, model, teacher


def test_a_student_that_is_not_finite_skips_its_step_and_leaves_the_minibatch(tmp_path: Path) -> None:
    """No error in the middle of a step: every rank has to reach its end."""
    path = tmp_path / "bad_batches" / "rank-0.safetensors"
    learner, _, teacher = poisoned(path)
    scored = score(tiny("llama"), teacher, SEQUENCES)
    before = {name: tensor.clone() for name, tensor in learner.trainer.student.named_weights()}
    report = learner.step(scored, scored[:1])
    assert not report.outcome.applied
    for name, tensor in learner.trainer.student.named_weights():
        assert torch.equal(tensor, before[name]) or name == "model.norm.weight"
    arrays = load_file(path)
    assert len(arrays) == 4 * (len(scored) + 1)
    for number, (trajectory, payload) in enumerate([*scored, scored[0]]):
        np.testing.assert_array_equal(arrays[f"{number}.prompt_ids"], trajectory.prompt_ids)
        np.testing.assert_array_equal(arrays[f"{number}.response_ids"], trajectory.response_ids)
        np.testing.assert_array_equal(arrays[f"{number}.sampler_logprob"], trajectory.sampler_logprob)
        np.testing.assert_array_equal(arrays[f"{number}.hidden"], payload.data)


def test_a_good_step_leaves_no_file(tmp_path: Path) -> None:
    """Only what was skipped is worth looking into."""
    path = tmp_path / "bad.safetensors"
    model, teacher = tiny("llama"), tiny("llama", seed=7).eval()
    learner = make_learner(make_trainer(model), teacher, bad_batch_file=path)
    assert learner.step(score(model, teacher, SEQUENCES)).outcome.applied
    assert not path.exists()


def test_no_file_is_asked_for_and_none_is_written() -> None:
    """The step is skipped all the same."""
    learner, _, teacher = poisoned(None)
    assert not learner.step(score(tiny("llama"), teacher, SEQUENCES)).outcome.applied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_batch_keeps_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of a bfloat16 teacher's states and of the mixture's log-probabilities, where there were any."""
    teacher = tiny("llama", seed=7).eval()
    ((trajectory, payload),) = score(teacher, teacher, SEQUENCES[:1])
    payload = encode_hidden(torch.from_numpy(payload.data), dtype)
    mixed = replace(trajectory, behavior_logprob=trajectory.sampler_logprob - 1)
    write_bad_batch(tmp_path / "b.safetensors", [(mixed, payload)])
    arrays = load_file(tmp_path / "b.safetensors")
    assert arrays["0.hidden"].dtype == payload.data.dtype
    np.testing.assert_array_equal(arrays["0.hidden"], payload.data)
    np.testing.assert_array_equal(arrays["0.behavior_logprob"], mixed.behavior_logprob)
