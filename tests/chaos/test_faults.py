"""A process of any role is killed or stopped at a random moment, and the run ends as if nothing had happened.

Three seeds of each in the test suite, all of them with `make chaos`.
"""

import os
import random
import time
from collections.abc import Callable

import pytest
from scripted.crew import KILL, STOP, ScriptedRun

MakeRun = Callable[..., ScriptedRun]
NUM_SEEDS, NUM_SEEDS_ALWAYS = 20, 3
SEEDS = [pytest.param(seed, marks=[pytest.mark.chaos] if seed >= NUM_SEEDS_ALWAYS else []) for seed in range(NUM_SEEDS)]
NUMBERS = {"SIGKILL": KILL, "SIGSTOP": STOP}


class Fault:
    """For `on_turn`: after `steps` steps and `seconds` more, one serving process of `role` gets the signal."""

    def __init__(self, role: str, number: int, *, steps: int, seconds: float = 0.0, choose: random.Random) -> None:
        self._role, self._number, self._steps, self._seconds, self._choose = role, number, steps, seconds, choose
        self._since: float | None = None
        self.replica: int | None = None
        self.process = 0

    def __call__(self, run: ScriptedRun) -> None:
        serving = run.well(self._role)
        if self.replica is not None or len(run.steps) < self._steps or not serving:
            return
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since >= self._seconds:
            member = self._choose.choice(serving)
            self.replica = member.number
            self.process = run.signal(member, self._number)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("signal_name", NUMBERS)
@pytest.mark.parametrize("role", ["rollout", "teacher", "learner"])
def test_a_run_survives_any_process_at_any_moment(
    scripted_run: MakeRun, role: str, signal_name: str, seed: int
) -> None:
    """Every prompt is trained once and none too late, and the events tell who was lost, why, and what followed."""
    rng = random.Random(f"{role} {signal_name} {seed}")
    fault = Fault(role, NUMBERS[signal_name], steps=rng.randint(0, 12), seconds=rng.uniform(0.0, 0.2), choose=rng)
    run = scripted_run(
        plan={"max_staleness": rng.randint(0, 2), "mixed": rng.random() < 0.5},
        every_steps=rng.choice([2, 4]),
        on_turn=fault,
    )
    assert run.run()
    run.check()
    assert fault.replica is not None
    reasons = [fields["reason"] for fields in run.told(f"{role}_lost") if fields["number"] == fault.replica]
    # Of Ray's errors for actors; where the cluster is slow to tell of a death, the heartbeat misses it first.
    signs = ("hung",) if signal_name == "SIGSTOP" else ("Actor", "hung")
    assert [reason for reason in reasons if any(sign in reason for sign in signs)], reasons
    assert len(run.told("learner_lost")) == len(run.told("went_back"))
    if role == "learner":
        kinds = [kind for kind, _ in run.events]
        lost = kinds.index("learner_lost")
        assert "went_back" in kinds[lost:] and "learner_ready" in kinds[lost:]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_survives_one_fault_after_the_other(scripted_run: MakeRun, seed: int) -> None:
    """Six of them, in roles and moments drawn by the seed."""
    rng = random.Random(seed)
    faults = [
        Fault(
            rng.choice(["rollout", "teacher", "learner"]),
            rng.choice([KILL, STOP]),
            steps=rng.randint(0, 14),
            choose=rng,
        )
        for _ in range(6)
    ]

    def on_turn(run: ScriptedRun) -> None:
        for fault in faults:
            fault(run)

    run = scripted_run(plan={"mixed": rng.random() < 0.5}, on_turn=on_turn)
    assert run.run()
    run.check()
    assert all(fault.replica is not None for fault in faults)


@pytest.mark.parametrize("role", ["rollout", "teacher", "learner"])
def test_without_staleness_a_killed_process_changes_no_step(scripted_run: MakeRun, role: str) -> None:
    """Each optimizer step trains what it would have trained, in the ledger's order."""
    fault = Fault(role, KILL, steps=7, seconds=0.05, choose=random.Random(1))
    run = scripted_run(plan={"max_staleness": 0}, on_turn=fault)
    assert run.run()
    assert run.told(f"{role}_lost")
    assert run.by_step() == run.expected_steps()
    assert run.trained == [pair for step in sorted(run.by_step()) for pair in run.by_step()[step]]


def test_a_process_that_hangs_does_not_stay_behind(scripted_run: MakeRun) -> None:
    """It holds memory, and a GPU: the cluster ends it, stopped as it is."""
    fault = Fault("teacher", STOP, steps=2, choose=random.Random(1))
    run = scripted_run(on_turn=fault)
    assert run.run()
    deadline = time.monotonic() + 60.0
    while os.path.exists(f"/proc/{fault.process}"):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.1)
