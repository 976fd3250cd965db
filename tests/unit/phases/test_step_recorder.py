"""What a step leaves behind, and when a run that has gone wrong is stopped."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minillm_ray.config.errors import RunError
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.learner.distillation import StepReport, TrainedTrajectory
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.mixture.sampler import SamplingCounts
from minillm_ray.phases.step_recorder import StepRecorder
from minillm_ray.pipeline.admission import Ticket
from minillm_ray.pipeline.ledger import Assignment
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.responses import Response
from minillm_ray.pipeline.training import Round, Step
from minillm_ray.teacher.scorer import ScoreReport
from minillm_ray.telemetry.console import RunConsole
from minillm_ray.telemetry.events import EventsWriter, read_events
from minillm_ray.telemetry.metrics import MetricsWriter, read_metrics
from minillm_ray.telemetry.reductions import Mean, Sum
from minillm_ray.telemetry.samples import SamplesWriter, read_samples
from minillm_ray.weights.buffers import WeightMismatchError

IDLE = {"pipeline/busy_seconds/learner": 0.25}


@pytest.fixture
def recorder(tmp_path: Path) -> StepRecorder:
    """A recorder into tmp_path, inside a phase of ten steps."""
    context: Any = SimpleNamespace(
        console=RunConsole(stream=(tmp_path / "console").open("w")),
        metrics=MetricsWriter(tmp_path / "metrics.jsonl"),
        events=EventsWriter(tmp_path / "events.jsonl"),
        samples=SamplesWriter(tmp_path / "samples.parquet"),
        inputs=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))),
        config=SimpleNamespace(run_dir=tmp_path),
        status=SimpleNamespace(step=lambda step: None),
    )
    context.console.begin("minillm", total_steps=10)
    return StepRecorder(context, "minillm", max_mismatch_nats=0.1, num_prompts_cut=2, take_activity=lambda: IDLE)


def a_step(
    number: int = 1,
    *,
    mismatch: float = 0.0,
    applied: bool = True,
    on_policy: bool = True,
    round_is_over: bool = True,
) -> Step:
    """One rank's step on one response of two tokens, drawn with the weights of version `number`."""
    trajectory = Trajectory(
        prompt_index=7,
        prompt_ids=np.array([3, 4], np.int32),
        response_ids=np.array([5, 6], np.int32),
        sampler_logprob=np.zeros(2, np.float32),
        behavior_logprob=None,
        weight_version=np.array([number, number], np.int32),
        truncated=False,
    )
    numbers = np.array([0.5, 0.25], np.float32)
    report = StepReport(
        metrics={
            "objective/loss/total": Sum(1.5),
            "objective/kl_nats_per_token/mean": Mean(0.75, 2.0),
            "learner/sampler_mismatch_nats/mean": Mean(2 * mismatch, 2.0),
            "rollout/response_tokens/mean": Mean(2.0, 1.0),
        },
        outcome=StepOutcome(gradient_norm=2.0, learning_rate=1e-3, applied=applied),
        samples=(TrainedTrajectory(trajectory, kl=numbers, student_logprob=-numbers, teacher_logprob=-2 * numbers),),
    )
    return Step(
        step=number,
        reports=[report],
        step_seconds=0.5,
        is_on_policy=on_policy,
        round=a_round(number) if round_is_over else None,
    )


def a_round(version: int) -> Round:
    """Of the same response."""
    response = Response(Ticket(Assignment(0, 0, 7), version), Task("train", 7, 0, mixed=False), "a", None, None)
    response.drawn = SamplingCounts(2, 0, 0, 2, 1, 0)
    response.scored = ScoreReport(response_tokens=2, payload_bytes=640, engine_tokens=4, requests=1)
    return Round([response], version, seconds=6.0, pull_seconds=3.0)


def test_a_step_leaves_its_numbers_and_its_samples(recorder: StepRecorder, tmp_path: Path) -> None:
    """One line in metrics.jsonl and one row a sample, token by token."""
    recorder.record(a_step())
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["objective/kl_nats_per_token/mean"] == 0.375
    assert row["learner/gradient_norm/global"] == 2.0
    assert row["teacher/payload_bytes_per_token/mean"] == 320.0
    assert row["weights/publish_and_pull_seconds/total"] == 3.0
    assert row["data/prompts_cut/total"] == 2.0
    assert row.items() >= IDLE.items()
    (sample,) = read_samples(tmp_path / "samples.parquet")
    assert (sample.prompt_index, sample.weight_version, sample.response) == (7, 1, "5 6")
    assert sample.kl == [0.5, 0.25]
    assert sample.response_tokens == ["5", " 6"]


def test_what_a_round_cost_stands_with_its_last_step(recorder: StepRecorder, tmp_path: Path) -> None:
    """The steps before it have numbers of their own alone."""
    recorder.record(a_step(1, round_is_over=False))
    recorder.record(a_step(2))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert "pipeline/round_seconds/total" not in first
    assert second["pipeline/round_seconds/total"] == 6.0


def test_what_replicas_did_before_the_first_step_belongs_to_no_step(tmp_path: Path) -> None:
    """Loading and measuring are not idle time of a step: whoever counts begins anew with the recorder."""
    taken: list[str] = []
    context: Any = SimpleNamespace()
    StepRecorder(
        context,
        "minillm",
        max_mismatch_nats=0.1,
        num_prompts_cut=0,
        take_activity=lambda: taken.append("all so far") or {},  # type: ignore[func-returns-value]
    )
    assert taken == ["all so far"]


def test_the_mismatch_is_written_only_at_equal_weights(recorder: StepRecorder, tmp_path: Path) -> None:
    """A step on tokens of older weights has a gap that means nothing, and stops nothing."""
    recorder.record(a_step(1, mismatch=0.01))
    recorder.record(a_step(2, mismatch=5.0, on_policy=False))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["learner/sampler_mismatch_nats/mean"] == pytest.approx(0.01)
    assert "learner/sampler_mismatch_nats/mean" not in second


def test_samplers_that_do_not_hold_the_published_weights_stop_the_run(recorder: StepRecorder) -> None:
    """The message has the gap, the limit and the setting."""
    with pytest.raises(WeightMismatchError, match=r"step 1: .* 0\.5 nats .* at most 0\.1 .*max_mismatch_nats"):
        recorder.record(a_step(mismatch=0.5))


def test_a_skipped_step_is_an_event_and_the_third_in_a_row_stops_the_run(
    recorder: StepRecorder, tmp_path: Path
) -> None:
    """Two skipped steps, a good one, and three more: only the last stops, and it names the saved batch."""
    for number, applied in enumerate([False, False, True, False, False], start=1):
        recorder.record(a_step(number, applied=applied))
    with pytest.raises(RunError, match="bad_batches"):
        recorder.record(a_step(6, applied=False))
    skipped = [event.fields["step"] for event in read_events(tmp_path / "events.jsonl") if event.kind == "step_skipped"]
    assert skipped == [1, 2, 4, 5, 6]


def test_a_step_without_any_finite_number_is_still_recorded(recorder: StepRecorder, tmp_path: Path) -> None:
    """A student whose states are not finite gives no divergence and no loss."""
    step = a_step(applied=False)
    report = step.reports[0]
    metrics = {"rollout/response_tokens/mean": report.metrics["rollout/response_tokens/mean"]}
    recorder.record(replace(step, reports=[replace(report, metrics=metrics, samples=())]))
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "objective/kl_nats_per_token/mean" not in row
