"""Real Ray and vLLM: a process of each role is killed or stopped at a random moment, and the run ends well.

Scripted actors meet the same in every state (test_faults.py); here the engines are real, and so is the time that a new
one takes to load.
"""

import os
import random
import signal
from pathlib import Path

import psutil
import pytest
from scripted.small_run import SmallRun, assert_trained_once, train, write_small_run

from minillm_ray.telemetry.metrics import read_metrics

ROUNDS, ROLLOUTS, MAX_STALENESS = 60, 16, 1
ACTORS = {"rollout": "ray::RolloutActor", "teacher": "ray::TeacherActor", "learner": "ray::DistillationActor"}
"""By role: how Ray names the process."""


def trial(role: str, sent: signal.Signals, seed: int, *, every_day: bool = False) -> object:
    marks = () if every_day else pytest.mark.chaos
    return pytest.param(role, sent, seed, marks=marks, id=f"{role}-{sent.name}-{seed}")


@pytest.mark.parametrize(
    ("role", "sent", "seed"),
    [
        trial(role, sent, seed, every_day=(role, sent, seed) == ("rollout", signal.SIGSTOP, 0))
        for role in ACTORS
        for sent in (signal.SIGKILL, signal.SIGSTOP)
        for seed in (0, 1)
    ],
)
def test_a_run_outlives_any_of_its_processes(role: str, sent: signal.Signals, seed: int, tmp_path: Path) -> None:
    """Status 0, every prompt trained once, no response too stale, every step in the metrics; and the events say it.

    The second seed mixes with the teacher, which then takes part in every response that is drawn.
    """
    run_file = write_small_run(
        tmp_path,
        steps=ROUNDS,
        rollouts=ROLLOUTS,
        minibatch=ROLLOUTS,
        objective={"alpha": 0.2 * seed},
        pipeline={"mode": "async", "max_staleness": MAX_STALENESS},
        checkpoint={"every_steps": 5},
    )
    with train(run_file) as run:
        run.wait_until(lambda: len(steps(run)) > random.Random(f"{role} {sent.name} {seed}").randrange(30))
        [hit] = run.processes(ACTORS[role])
        os.kill(hit.pid, sent)
        assert run.wait() == 0, run.output
    assert_story(run, role, sent)
    assert_trained_once(run.run_dir, rounds=ROUNDS, rollouts=ROLLOUTS)
    assert steps(run) == list(range(1, ROUNDS + 1))
    stalest = [row["rollout/staleness_versions/max"] for row in read_metrics(run.run_dir / "metrics.jsonl")]
    assert max(stalest) <= MAX_STALENESS
    assert not psutil.pid_exists(hit.pid)


def assert_story(run: SmallRun, role: str, sent: signal.Signals) -> None:
    """One replica was lost, for the right reason, another came in its place, and the run ended as it should."""
    events = [event for event in run.events if event.kind != "checkpoint_saved"]
    [lost] = [event for event in events if event.kind.endswith("_lost")]
    assert lost.kind == f"{role}_lost"
    assert lost.fields["reason"].startswith("hung: ") == (sent is signal.SIGSTOP), lost.fields
    later = [event.kind for event in events[events.index(lost) :]]
    assert f"{role}_ready" in later
    assert ("went_back" in later) == (role == "learner")
    assert (events[-1].kind, events[-1].fields) == ("run_ended", {"status": "done"})


def steps(run: SmallRun) -> list[int]:
    """Steps with a line in the metrics, ascending; one that was made twice counts once."""
    path = run.run_dir / "metrics.jsonl"
    return sorted(row["step"] for row in read_metrics(path)) if path.exists() else []
