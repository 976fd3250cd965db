"""A run that is stopped and continued is the run that was not stopped: the same numbers and weights, bit for bit.

Real Ray and vLLM, one replica of each role, in turn (pipeline.mode sync). What it takes: every response has a seed of
its own, a round enters the student's engine as one batch, and a checkpoint holds all of the learner's state.
"""

import signal
from pathlib import Path

from safetensors.numpy import load_file
from scripted.small_run import assert_trained_once, loss_curve, train, write_small_run

from minillm_ray.telemetry.files import read_jsonl

STEPS, ROLLOUTS, MINIBATCH, EVERY_STEPS = 32, 16, 8, 4
ROUNDS = STEPS * MINIBATCH // ROLLOUTS


def test_a_run_that_was_asked_to_end_and_then_killed_continues_to_the_same_numbers_and_weights(tmp_path: Path) -> None:
    """SIGTERM after the first checkpoint, SIGKILL after a later one, in the middle of whatever it does."""
    run_file = write_small_run(
        tmp_path, steps=STEPS, rollouts=ROLLOUTS, minibatch=MINIBATCH, checkpoint={"every_steps": EVERY_STEPS}
    )
    with train(run_file, f"run_dir={tmp_path / 'whole'}") as run:
        assert run.wait() == 0, run.output
        whole = run.run_dir
    stopped = f"run_dir={tmp_path / 'stopped'}"
    with train(run_file, stopped) as run:
        run.wait_for_checkpoint(EVERY_STEPS)
        assert run.send(signal.SIGTERM) == 143, run.output
        last = max(row["step"] for row in read_jsonl(run.run_dir / "metrics.jsonl").rows)
    with train(run_file, stopped) as run:
        run.wait_for_checkpoint(last + EVERY_STEPS)
        assert run.send(signal.SIGKILL) == -signal.SIGKILL, run.output
    with train(run_file, stopped) as run:
        assert run.wait() == 0, run.output
    asked, killed = (event.fields["step"] for event in run.events if event.kind == "resumed")
    assert asked == last, "asked to end, a run loses nothing"
    assert last + EVERY_STEPS <= killed < STEPS
    assert_trained_once(run.run_dir, rounds=ROUNDS, rollouts=ROLLOUTS)
    assert loss_curve(run.run_dir) == loss_curve(whole)
    student, expected = (load_file(folder / "student" / "model.safetensors") for folder in (run.run_dir, whole))
    assert student.keys() == expected.keys()
    assert [name for name in expected if student[name].tobytes() != expected[name].tobytes()] == []
