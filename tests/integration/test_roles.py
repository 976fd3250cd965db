"""Three steps with two vLLM rollout workers, a vLLM teacher and a learner on Ray, checked against transformers."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from minillm_ray.config import load_config
from minillm_ray.learner.distillation import StepReport
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.phases.cluster import cluster
from minillm_ray.phases.inputs import prepare_inputs
from minillm_ray.phases.objective import objective_settings
from minillm_ray.phases.roles import PromptReferences, distillation_group, rollout_pool, teacher_pool
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.synchronous import PipelineStep, RoundPlan, SynchronousPipeline

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
NUM_STEPS = 3
OVERRIDES = (
    "rollout.replicas=2",
    "teacher.cpus=1",
    "learner.cpus=1",
    "rollout.max_response_tokens=12",
    "telemetry.samples_per_step=8",
    "weights.bucket_mb=1",
    f"phases.2.steps={NUM_STEPS}",
    "phases.2.rollouts=8",
    "phases.2.minibatch=8",
    "phases.2.warmup_steps=0",
)


class Outcome:
    """What the run left: its steps, one more step on responses of the final weights, and the saved student."""

    steps: list[PipelineStep]
    final_report: StepReport
    final_trajectories: list
    student: Path
    teacher: Path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    run_dir = tmp_path_factory.mktemp("run")
    config = load_config(CONFIG, [*OVERRIDES, f"run_dir={run_dir}"])
    phase = config.phases[2]
    result = Outcome()
    with cluster(config) as facts:
        inputs = prepare_inputs(config, embedded=run_dir / "embedded")
        prompts = PromptReferences(
            ray.put(inputs.prompts(inputs.train[:20])), ray.put(inputs.prompts(inputs.held_out[:4]))
        )
        with (
            rollout_pool(config, facts, inputs, model=inputs.student, prompts=prompts) as rollout,
            teacher_pool(config, facts, inputs, model=inputs.teacher) as teacher,
            distillation_group(
                config,
                facts,
                inputs,
                phase,
                student=inputs.student,
                teacher=inputs.teacher,
                settings=objective_settings(config),
            ) as learner,
        ):
            rollout.ready(startup_timeout_seconds=300)
            teacher.ready(startup_timeout_seconds=300)
            learner.join(startup_timeout_seconds=300)
            pipeline = SynchronousPipeline(rollout, teacher, learner, Ledger(20, seed=0), RoundPlan(8, 8, 1))
            result.steps = list(pipeline.steps(NUM_STEPS))
            result.student, result.teacher = run_dir / "student", Path(inputs.teacher)
            learner.save(result.student)
            trajectories = rollout.generate("train", list(range(8)), draw=99)
            payloads, _ = teacher.score(trajectories)
            result.final_trajectories = ray.get(trajectories)
            result.final_report = learner.step(trajectories, payloads)[0]
    yield result
    os.environ.pop("RAY_ADDRESS", None)


def next_token_logprobs(model: AutoModelForCausalLM, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """float32 [n, V]: the distributions that predict the response's tokens."""
    ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)[None]
    with torch.no_grad():
        return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_after_every_pull_the_samplers_report_the_learners_own_logprobs(outcome: Outcome) -> None:
    """Each step the student changes, and each time both replicas' log-probs equal the learner's at those weights."""
    for step in outcome.steps:
        numbers = finish_step(combine_step([report.metrics for report in step.reports]))
        assert numbers["learner/sampler_mismatch_nats/max"] < 1e-4
        versions = {int(v) for sample in step.reports[0].samples for v in sample.trajectory.weight_version}
        assert versions == {step.step}
    assert {int(v) for trajectory in outcome.final_trajectories for v in trajectory.weight_version} == {NUM_STEPS + 1}


def test_the_saved_student_gives_the_learners_and_the_samplers_logits_in_transformers(outcome: Outcome) -> None:
    """log q of every drawn token: transformers on RUN/student, the learner and vLLM agree."""
    student = AutoModelForCausalLM.from_pretrained(outcome.student)
    assert len(outcome.final_report.samples) == 8
    for sample in outcome.final_report.samples:
        trajectory = sample.trajectory
        logprobs = next_token_logprobs(student, trajectory.prompt_ids, trajectory.response_ids)
        expected = logprobs.gather(1, torch.tensor(trajectory.response_ids, dtype=torch.long)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(sample.student_logprob, expected, atol=1e-4)
        np.testing.assert_allclose(trajectory.sampler_logprob, expected, atol=1e-4)


def test_the_trained_divergence_is_that_of_the_two_models_on_the_drawn_tokens(outcome: Outcome) -> None:
    """KL(q || p) of the step, from vLLM's hidden states and two heads, equals two dense softmaxes of transformers."""
    student = AutoModelForCausalLM.from_pretrained(outcome.student)
    teacher = AutoModelForCausalLM.from_pretrained(outcome.teacher)
    for sample in outcome.final_report.samples:
        trajectory = sample.trajectory
        log_q = next_token_logprobs(student, trajectory.prompt_ids, trajectory.response_ids)
        log_p = next_token_logprobs(teacher, trajectory.prompt_ids, trajectory.response_ids)
        kl = (log_q.exp() * (log_q - log_p)).sum(-1).numpy()
        np.testing.assert_allclose(sample.kl, kl, atol=1e-4)


def test_the_weights_changed_from_step_to_step(outcome: Outcome) -> None:
    """Otherwise the tests above would hold for a learner that learns nothing."""
    initial = AutoModelForCausalLM.from_pretrained(outcome.teacher.parent / "student").state_dict()
    final = AutoModelForCausalLM.from_pretrained(outcome.student).state_dict()
    assert all(not torch.equal(initial[name], final[name]) for name in initial)
