"""Three rounds of mixed responses: two vLLM samplers, a vLLM teacher and a learner, checked against transformers."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from scripted.small_run import SEED, write_small_run
from transformers import AutoModelForCausalLM

from minillm_ray.config import load_config
from minillm_ray.config.run import RunConfig
from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.learner.distillation import StepReport, TrainedTrajectory
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.mixture.sampler import SamplingCounts
from minillm_ray.phases.assembly import assembled
from minillm_ray.phases.cluster import cluster
from minillm_ray.phases.inputs import Inputs, prepare_inputs
from minillm_ray.phases.objective import objective_settings
from minillm_ray.phases.roles import (
    PromptReferences,
    RunParts,
    learner_launcher,
    rollout_launcher,
    schedule,
    teacher_launcher,
)
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.responses import Response, least_loaded
from minillm_ray.pipeline.training import Progress, RoundPlan, Step, Training

ALPHA = 0.2
PLAN = RoundPlan(rollouts=8, minibatch=8, inner_epochs=1, rounds=3, max_staleness=0, mixed=True)
ACROSS_LIBRARIES = 1e-4


@dataclass
class Outcome:
    """steps: of the three rounds. The rest is of one more step, on responses of the weights that were saved."""

    first_student: Path
    student: Path
    teacher: Path
    steps: list[Step] = field(default_factory=list)
    samples: tuple[TrainedTrajectory, ...] = ()
    trajectories: list[Trajectory] = field(default_factory=list)
    counts: list[SamplingCounts] = field(default_factory=list)
    collected: list[HiddenPayload] = field(default_factory=list)
    """Payloads from the sessions in which the responses were mixed."""
    scored: list[HiddenPayload] = field(default_factory=list)
    """Of the same responses, each from one pass without a session."""


class NeverDue:
    """Checkpoints of a training that needs none."""

    is_writing = False

    def was_tried(self, step: int) -> bool:
        return True

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, progress: Progress) -> None: ...

    def go_back(self) -> tuple[Progress, Path | None]:
        raise AssertionError("the learner is lost")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("roles")
    run_file = write_small_run(
        folder,
        steps=PLAN.rounds,
        rollouts=PLAN.rollouts,
        minibatch=PLAN.minibatch,
        objective={"alpha": ALPHA},
        rollout={"replicas": 2},
        weights={"bucket_mb": 1},
        telemetry={"samples_per_step": PLAN.minibatch},
        pipeline={"heartbeat_timeout_seconds": 60.0},
    )
    config = load_config(run_file)
    result = Outcome(folder / "student", config.run_dir / "student", folder / "teacher")
    with working_crew(config) as crew:
        Training(
            crew,
            Ledger(PLAN.rollouts * PLAN.rounds, seed=SEED),
            PLAN,
            Progress(0, Ledger(PLAN.rollouts * PLAN.rounds, seed=SEED).state()),
            NeverDue(),
            on_step=result.steps.append,
        ).run()
        crew.ask_learner(lambda learner: learner.save(result.student), "saving the model")
        one_more_step(crew, result)
    yield result
    os.environ.pop("RAY_ADDRESS", None)


@contextmanager
def working_crew(config: RunConfig) -> Iterator[Crew]:
    with cluster(config) as facts:
        inputs = prepare_inputs(config, embedded=config.run_dir / "embedded")
        context: Any = SimpleNamespace(
            config=config,
            events=SimpleNamespace(write=lambda kind, fields: print(kind, fields)),
            console=SimpleNamespace(message=print),
            status=SimpleNamespace(crew=lambda version, replicas: None),
            scale_requests=dict,
        )
        with assembled(context, launchers(RunParts(config, facts, inputs), inputs)) as (crew, _):
            crew.learner.on_ready = lambda: crew.publish(1)
            crew.rollout.scale(2)
            crew.teacher.scale(1)
            crew.learner.start(1, restore_from=None)
            crew.turn_until(lambda: crew.all_pulled and len(crew.rollout.serving) == 2)
            yield crew


def launchers(parts: RunParts, inputs: Inputs) -> dict[str, Any]:
    settings = objective_settings(parts.config)
    prompts = PromptReferences(ray.put(inputs.prompts(inputs.train)), ray.put(inputs.prompts(inputs.held_out)))
    return {
        "rollout": rollout_launcher(parts, model=inputs.student, prompts=prompts, settings=settings),
        "teacher": teacher_launcher(parts, model=inputs.teacher),
        "learner": learner_launcher(
            parts,
            student=inputs.student,
            teacher=inputs.teacher,
            settings=settings,
            schedule=schedule(parts.config, parts.config.phases[0], num_steps=PLAN.rounds + 1),
            in_turn=True,
        ),
    }


def one_more_step(crew: Crew, result: Outcome) -> None:
    """Eight mixed responses, scored in their sessions and once more without, and a step on them."""
    drawn: dict[Any, Response] = {}
    crew.responses.on_scored = lambda response: drawn.update({response.key: response})
    for index in range(PLAN.minibatch):
        task = Task("train", index, draw=99, mixed=True)
        crew.responses.start(index, task, least_loaded(crew.up_to_date))
    crew.turn_until(lambda: len(drawn) == PLAN.minibatch)
    responses = [drawn[index] for index in range(PLAN.minibatch)]
    trajectories = [response.trajectory for response in responses]
    payloads = [response.payload for response in responses]
    [teacher] = crew.teacher.serving
    alone = [teacher.client.score(trajectory, None, exact=True)[1] for trajectory in trajectories]
    result.trajectories, result.collected, result.scored = map(ray.get, (trajectories, payloads, alone))
    result.counts = [response.drawn for response in responses]
    reports: list[StepReport] = crew.ask_learner(lambda it: it.step(trajectories, payloads, [], []), "one more step")
    result.samples = reports[0].samples


def next_token_logprobs(folder: Path, trajectory: Trajectory) -> torch.Tensor:
    """float32 [n, V]: the distributions that predict the response's tokens, from a saved model in transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]).logits
    return logits[0, len(trajectory.prompt_ids) - 1 : -1].log_softmax(-1)


def of_tokens(logprobs: torch.Tensor, trajectory: Trajectory) -> np.ndarray:
    """float32 [n]: each response token's own."""
    return logprobs.gather(1, torch.from_numpy(trajectory.response_ids.astype(np.int64))[:, None])[:, 0].numpy()


def test_after_every_pull_the_samplers_report_the_learners_own_logprobs(outcome: Outcome) -> None:
    """Each round the student changes, and each time both replicas' log-probs equal the learner's at those weights."""
    assert [step.step for step in outcome.steps] == [1, 2, 3]
    for step in outcome.steps:
        assert step.is_on_policy
        assert step.round is not None
        assert {response.rollout.number for response in step.round.responses if response.rollout} == {0, 1}
        numbers = finish_step(combine_step([report.metrics for report in step.reports]))
        assert numbers["learner/sampler_mismatch_nats/max"] < ACROSS_LIBRARIES
        versions = {int(v) for sample in step.reports[0].samples for v in sample.trajectory.weight_version}
        assert versions == {step.step}
    assert {int(v) for trajectory in outcome.trajectories for v in trajectory.weight_version} == {PLAN.rounds + 1}


def test_the_saved_student_gives_the_learners_and_the_samplers_logits_in_transformers(outcome: Outcome) -> None:
    """log q of every token, whichever model drew it: transformers on RUN/student, the learner and vLLM agree."""
    assert len(outcome.samples) == len(outcome.trajectories) == PLAN.minibatch
    for sample in outcome.samples:
        expected = of_tokens(next_token_logprobs(outcome.student, sample.trajectory), sample.trajectory)
        np.testing.assert_allclose(sample.student_logprob, expected, atol=ACROSS_LIBRARIES)
        np.testing.assert_allclose(sample.trajectory.sampler_logprob, expected, atol=ACROSS_LIBRARIES)


def test_the_recorded_behavior_is_the_mixture_of_both_models(outcome: Outcome) -> None:
    """log(alpha p + (1 - alpha) q) of every token, from transformers; and some tokens were the teacher's."""
    assert sum(counts.num_corrections for counts in outcome.counts) > 0
    for trajectory in outcome.trajectories:
        log_q, log_p = (
            of_tokens(next_token_logprobs(folder, trajectory), trajectory)
            for folder in (outcome.student, outcome.teacher)
        )
        expected = np.logaddexp(log_p + math.log(ALPHA), log_q + math.log1p(-ALPHA))
        np.testing.assert_allclose(trajectory.behavior_logprob, expected, atol=ACROSS_LIBRARIES)


def test_the_trained_divergence_is_that_of_the_two_models_on_the_drawn_tokens(outcome: Outcome) -> None:
    """KL(q || p) of the step, from the states of a session and two heads, equals two dense softmaxes."""
    for sample in outcome.samples:
        log_q, log_p = (next_token_logprobs(folder, sample.trajectory) for folder in (outcome.student, outcome.teacher))
        np.testing.assert_allclose(sample.kl, (log_q.exp() * (log_q - log_p)).sum(-1), atol=ACROSS_LIBRARIES)


def test_the_states_that_a_session_collected_are_those_of_one_scoring_pass(outcome: Outcome) -> None:
    """So a finished mixed response needs no second pass."""
    for collected, scored, trajectory in zip(outcome.collected, outcome.scored, outcome.trajectories, strict=True):
        assert collected.data.shape == (len(trajectory.response_ids), 128)
        np.testing.assert_allclose(collected.data, scored.data, atol=1e-5)


def test_the_weights_changed(outcome: Outcome) -> None:
    """Otherwise the tests above would hold for a learner that learns nothing."""
    initial = AutoModelForCausalLM.from_pretrained(outcome.first_student).state_dict()
    final = AutoModelForCausalLM.from_pretrained(outcome.student).state_dict()
    assert all(not torch.equal(initial[name], final[name]) for name in initial)
