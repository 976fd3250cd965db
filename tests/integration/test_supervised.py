"""Supervised phases on real actors: what is killed comes back, and the weights are those of a run that was not hit."""

import json
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file
from scripted.small_run import SmallRun, loss_curve, train, write_small_run

from minillm_ray.telemetry.files import read_jsonl

EPOCHS, BATCH_SIZE, EVERY_STEPS = 30, 4, 20
NUM_STEPS = EPOCHS * 40 // BATCH_SIZE


def run_file(folder: Path, kind: str) -> Path:
    """One phase on pairs, of 300 steps; a checkpoint after every twentieth."""
    path = write_small_run(folder, steps=1, rollouts=1, minibatch=1, checkpoint={"every_steps": EVERY_STEPS})
    phase = {"kind": kind, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": 1e-3}
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"phases": [phase | ({"model": "student"} if kind == "sft" else {})]}))
    for name in ("train", "held_out"):
        file = folder / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"output": row["instruction"]}) + "\n" for row in rows))
    return path


def wait_for_end(run: SmallRun) -> None:
    """Of the phase: what the run measures after it is not waited for."""
    run.wait_until(lambda: any(event.kind == "phase_ended" for event in run.events))


def assert_every_step_was_made(run: SmallRun) -> None:
    steps = {row["step"] for row in read_jsonl(run.run_dir / "metrics.jsonl").rows}
    assert steps == set(range(1, NUM_STEPS + 1))


def test_fine_tuning_survives_its_learner_and_its_driver(tmp_path: Path) -> None:
    """First the one is killed, then the other; bit for bit the same curve and weights."""
    path = run_file(tmp_path, "sft")
    with train(path, f"run_dir={tmp_path / 'whole'}") as run:
        wait_for_end(run)
        whole = run.run_dir
    with train(path, f"run_dir={tmp_path / 'hit'}") as run:
        run.wait_for_checkpoint(EVERY_STEPS)
        [learner] = run.processes("ray::SupervisedActor")
        learner.kill()
        run.wait_until(lambda: any(event.kind == "resumed" for event in run.events))
        after = max(event.fields["step"] for event in run.events if event.kind == "checkpoint_saved")
        run.wait_for_checkpoint(after + EVERY_STEPS)
        assert run.send(signal.SIGKILL) == -signal.SIGKILL
    with train(path, f"run_dir={tmp_path / 'hit'}") as run:
        wait_for_end(run)
        assert [event.kind for event in run.events].count("resumed") == 2
        assert [event.kind for event in run.events].count("learner_lost") == 1
        assert_every_step_was_made(run)
        assert loss_curve(run.run_dir) == loss_curve(whole)
        best, expected = (
            load_file(folder / "phases/1-sft-student/best/model.safetensors") for folder in (run.run_dir, whole)
        )
    assert [name for name in expected if best[name].tobytes() != expected[name].tobytes()] == []


def test_word_level_distillation_survives_its_learner(tmp_path: Path) -> None:
    """It goes back to its newest checkpoint and makes every step."""
    with train(run_file(tmp_path, "kd")) as run:
        run.wait_for_checkpoint(EVERY_STEPS)
        [learner] = run.processes("ray::DistillationActor")
        learner.kill()
        wait_for_end(run)
        [resumed] = [event.fields["step"] for event in run.events if event.kind == "resumed"]
        assert EVERY_STEPS <= resumed < NUM_STEPS
        assert_every_step_was_made(run)
        name = "learner/supervised_loss_nats_per_token/validation"
        losses = [row[name] for row in read_jsonl(run.run_dir / "metrics.jsonl").rows if name in row]
    assert losses[-1] == pytest.approx(min(losses), rel=0.5)
    assert losses[-1] < losses[0]
