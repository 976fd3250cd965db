"""What a step leaves behind, and when a run that has gone wrong is stopped."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minillm_ray.config.errors import RunError
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.learner.distillation import StepReport, TrainedTrajectory
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.phases.step_recorder import StepRecorder
from minillm_ray.pipeline.synchronous import PipelineStep, RoundTimes
from minillm_ray.telemetry.console import RunConsole
from minillm_ray.telemetry.events import EventsWriter, read_events
from minillm_ray.telemetry.metrics import MetricsWriter, read_metrics
from minillm_ray.telemetry.reductions import Mean, Sum
from minillm_ray.telemetry.samples import SamplesWriter, read_samples
from minillm_ray.weights.buffers import WeightMismatchError

TIMES = RoundTimes(generate_seconds=1.0, score_seconds=2.0, weight_seconds=3.0, payload_bytes=640)


@pytest.fixture
def recorder(tmp_path: Path) -> StepRecorder:
    """A recorder into tmp_path, inside a phase of ten steps."""
    context = SimpleNamespace(
        console=RunConsole(stream=(tmp_path / "console").open("w")),
        metrics=MetricsWriter(tmp_path / "metrics.jsonl"),
        events=EventsWriter(tmp_path / "events.jsonl"),
        samples=SamplesWriter(tmp_path / "samples.parquet"),
        inputs=SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))),
        config=SimpleNamespace(run_dir=tmp_path),
    )
    context.console.begin("minillm", total_steps=10)
    return StepRecorder(context, "minillm", max_mismatch_nats=0.1, num_prompts_cut=2, inner_epochs=1)


def a_step(number: int = 1, *, mismatch: float = 0.0, applied: bool = True) -> PipelineStep:
    """One rank's step on one response of two tokens."""
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
    return PipelineStep(step=number, reports=[report], step_seconds=0.5, round=TIMES)


def test_a_step_leaves_its_numbers_and_its_samples(recorder: StepRecorder, tmp_path: Path) -> None:
    """One line in metrics.jsonl and one row a sample, token by token."""
    recorder.record(a_step(), equal_weights=True)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["objective/kl_nats_per_token/mean"] == 0.375
    assert row["learner/gradient_norm/global"] == 2.0
    assert row["teacher/payload_bytes_per_token/mean"] == 320.0
    assert row["data/prompts_cut/total"] == 2.0
    (sample,) = read_samples(tmp_path / "samples.parquet")
    assert (sample.prompt_index, sample.weight_version, sample.response) == (7, 1, "5 6")
    assert sample.kl == [0.5, 0.25]


def test_the_mismatch_is_written_only_at_equal_weights(recorder: StepRecorder, tmp_path: Path) -> None:
    """Later steps of a round train tokens of older weights: a gap there means nothing, and stops nothing."""
    recorder.record(a_step(1, mismatch=0.01), equal_weights=True)
    recorder.record(a_step(2, mismatch=5.0), equal_weights=False)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["learner/sampler_mismatch_nats/mean"] == pytest.approx(0.01)
    assert "learner/sampler_mismatch_nats/mean" not in second


def test_samplers_that_do_not_hold_the_published_weights_stop_the_run(recorder: StepRecorder) -> None:
    """The message has the gap, the limit and the setting."""
    with pytest.raises(WeightMismatchError, match=r"step 1: .* 0\.5 nats .* at most 0\.1 .*max_mismatch_nats"):
        recorder.record(a_step(mismatch=0.5), equal_weights=True)


def test_a_skipped_step_is_an_event_and_the_third_in_a_row_stops_the_run(
    recorder: StepRecorder, tmp_path: Path
) -> None:
    """Two skipped steps, a good one, and three more: only the last stops, and it names the saved batch."""
    for number, applied in enumerate([False, False, True, False, False], start=1):
        recorder.record(a_step(number, applied=applied), equal_weights=True)
    with pytest.raises(RunError, match="bad_batches"):
        recorder.record(a_step(6, applied=False), equal_weights=True)
    skipped = [event.fields["step"] for event in read_events(tmp_path / "events.jsonl") if event.kind == "step_skipped"]
    assert skipped == [1, 2, 4, 5, 6]


def test_a_step_without_any_finite_number_is_still_recorded(recorder: StepRecorder, tmp_path: Path) -> None:
    """A student whose states are not finite gives no divergence and no loss."""
    step = a_step(applied=False)
    report = step.reports[0]
    metrics = {"rollout/response_tokens/mean": report.metrics["rollout/response_tokens/mean"]}
    recorder.record(replace(step, reports=[replace(report, metrics=metrics, samples=())]), equal_weights=True)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "objective/kl_nats_per_token/mean" not in row
