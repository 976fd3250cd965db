"""A run that is stopped and continued is the run that was not stopped: the same numbers and weights, bit for bit.

Real Ray and vLLM, one replica of each role, in turn (pipeline.mode sync). What it takes: every response has a seed of
its own, a round enters the student's engine as one batch, and a checkpoint holds all of the learner's state.
"""

import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from scripted.small_run import assert_trained_once, loss_curve, train, write_small_run

from minillm_ray.telemetry.files import read_jsonl

STEPS, ROLLOUTS, MINIBATCH = 32, 16, 8
ROUNDS = STEPS * MINIBATCH // ROLLOUTS


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(
        tmp_path_factory.mktemp("resume"),
        steps=STEPS,
        rollouts=ROLLOUTS,
        minibatch=MINIBATCH,
        checkpoint={"every_steps": 4},
    )


@pytest.fixture(scope="module")
def whole(run_file: Path) -> Path:
    """run_dir of a run that nobody stopped."""
    run_dir = run_file.parent / "whole"
    with train(run_file, f"run_dir={run_dir}") as run:
        assert run.wait() == 0, run.output
    return run_dir


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_a_stopped_run_continues_to_the_same_numbers_and_weights(
    sent: signal.Signals, status: int, run_file: Path, whole: Path
) -> None:
    """Stopped after its first checkpoint: killed in the middle of whatever it does, or asked to end."""
    run_dir = f"run_dir={run_file.parent / sent.name}"
    with train(run_file, run_dir) as run:
        run.wait_for_checkpoint(4)
        assert run.send(sent) == status, run.output
        lines = [row["step"] for row in read_jsonl(run.run_dir / "metrics.jsonl").rows]
    with train(run_file, run_dir) as run:
        assert run.wait() == 0, run.output
    [resumed] = [event.fields["step"] for event in run.events if event.kind == "resumed"]
    assert 4 <= resumed < STEPS
    if sent is signal.SIGTERM:
        assert resumed == max(lines), "asked to end, a run loses nothing"
    assert_trained_once(run.run_dir, rounds=ROUNDS, rollouts=ROLLOUTS)
    assert loss_curve(run.run_dir) == loss_curve(whole)
    student, expected = (load_file(folder / "student" / "model.safetensors") for folder in (run.run_dir, whole))
    assert student.keys() == expected.keys()
    assert [name for name in expected if student[name].tobytes() != expected[name].tobytes()] == []
