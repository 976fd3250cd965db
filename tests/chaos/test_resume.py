"""A run that is killed whole, or whose disk is full, goes on from its last good checkpoint."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from scripted.actors import Script
from scripted.crew import KILL, ScriptedRun

from minillm_ray.checkpoint.folder import latest

MakeRun = Callable[..., ScriptedRun]
DRIVER = Path(__file__).parents[1] / "scripted" / "driver.py"


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_driver_that_is_killed_goes_on_where_it_was(
    scripted_run: MakeRun, cluster: Cluster, tmp_path: Path, max_staleness: int
) -> None:
    """Its actors die with it; the next one trains the rest, and nothing twice."""
    process = subprocess.Popen([sys.executable, DRIVER, cluster.address, tmp_path / "checkpoints", str(max_staleness)])
    try:
        wait_until(lambda: step_of(tmp_path) >= 4 or process.poll() is not None)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    step = step_of(tmp_path)
    run = scripted_run(plan={"max_staleness": max_staleness})
    assert run.run()
    run.check()
    assert run.steps[0].step > step >= 4
    if max_staleness == 0:
        assert run.by_step().items() <= run.expected_steps().items()


def test_a_run_that_is_asked_to_stop_and_started_again_trains_the_same_steps(scripted_run: MakeRun) -> None:
    """Without staleness: each optimizer step as it would have been."""
    first = scripted_run(plan={"max_staleness": 0}, every_steps=100)
    first.stop_asked = lambda: len(first.steps) >= 7
    assert not first.run()
    second = scripted_run(plan={"max_staleness": 0})
    assert second.run()
    second.check()
    assert second.steps[0].step == first.steps[-1].step + 1 == 9
    assert first.by_step() | second.by_step() == second.expected_steps()


def test_a_run_goes_on_while_its_disk_is_full_and_back_to_the_last_good_checkpoint(
    scripted_run: MakeRun, tmp_path: Path
) -> None:
    """A file of the learner's state cannot be written any more; then the learner dies, and its successor can write."""
    script = Script(state_bytes=300_000, step_seconds=0.03)
    run = scripted_run(script=script, plan={"rounds": 12, "max_staleness": 0})
    moments = ["fill", "kill"]

    def on_turn(run: ScriptedRun) -> None:
        for member in run.well("learner"):
            if moments == ["fill", "kill"] and len(run.told("checkpoint_saved")) >= 2:
                ray.get(member.client.handle.limit_files.remote(100_000))
                moments.remove("fill")
            elif moments == ["kill"] and len(run.told("checkpoint_failed")) >= 2:
                run.signal(member, KILL)
                moments.remove("kill")

    run.on_turn = on_turn
    assert run.run()
    run.check()
    assert all("File too large" in fields["reason"] for fields in run.told("checkpoint_failed"))
    kinds = [kind for kind, _ in run.events if kind.startswith(("checkpoint", "went_back"))]
    back = kinds.index("went_back")
    assert kinds[back - 1] == "checkpoint_failed" and "checkpoint_saved" in kinds[back:]
    good = [fields["step"] for kind, fields in run.events[: event(run, "went_back")] if kind == "checkpoint_saved"][-1]
    assert run.told("went_back")[0]["rounds"] * run.plan.steps_a_round == good
    assert step_of(tmp_path) == 24


def event(run: ScriptedRun, kind: str) -> int:
    return [other for other, _ in run.events].index(kind)


def step_of(folder: Path) -> int:
    """Of the newest whole checkpoint."""
    found = latest(folder / "checkpoints", warn=lambda text: None)
    return 0 if found is None else found.step


def wait_until(condition: Callable[[], Any], *, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
