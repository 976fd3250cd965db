"""How far trajectories per second grow with the number of rollout workers, and what the driver pays for each.

    python benchmarks/scaling.py --repeats 3
    python benchmarks/scaling.py --case memory

Real Ray, the real pipeline in async mode, and scripted actors (tests/scripted): a sampler draws `--slots` responses at
a time and takes a set time a token, give or take a quarter from one response to the next; scores and optimizer steps
take next to none. What is measured is the pipeline: its bound on staleness, its calls, its driver. A round is two
waves of all samplers; max_staleness is 1.

One JSON line for each number of workers in each repeat, the numbers in turn, on actors that stay alive in between:

    ideal                  slots / seconds of a response, times the number of workers
    trajectories_a_second  drawn from the end of the second round to the end of the last but two: while all work
    driver_cpu_ms          CPU time of the driver's process, all threads, for each trajectory in that time
    driver_rss_mb          resident memory of the driver at the quarters of that time

`memory` is a long run of 16 workers that draw as fast as they can, for the last of these.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])  # of the actors
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(ROOT / "tests"))

import ray  # noqa: E402
from scripted.actors import Script  # noqa: E402
from scripted.crew import Cast, ScriptedRun  # noqa: E402

from minillm_ray.pipeline.replicas import Supervision  # noqa: E402
from minillm_ray.pipeline.training import RoundPlan, Step  # noqa: E402

WORKERS = (1, 4, 16, 32)
WORKERS_A_TEACHER = 8
WAVES_A_ROUND, TOKENS, JITTER = 2, 128, 0.25
FIRST_ROUND, ROUNDS_AFTER = 2, 2
"""What is not counted: while the samplers fill up, and while nothing new is begun since the run ends."""
STEPS_KEPT = 20
"""Of what a run remembers for its check, so that the driver's memory is the pipeline's."""


@dataclass(frozen=True)
class Moment:
    """The end of a round."""

    seconds: float
    cpu_seconds: float
    rss_bytes: int


class Watch:
    """Hears of every step. moments: of the end of each round; drawn_at: when each response was there."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.drawn_at: list[float] = []

    def __call__(self, step: Step) -> None:
        if step.round is not None:
            self.moments.append(Moment(time.monotonic(), time.process_time(), resident_bytes()))
            self.drawn_at += [response.drawn_at for response in step.round.responses]


def measure(cast: Cast, *, workers: int, rounds: int, slots: int, token_seconds: float) -> dict[str, Any]:
    round_size = workers * slots * WAVES_A_ROUND
    plan = RoundPlan(
        rollouts=round_size, minibatch=round_size, inner_epochs=1, rounds=rounds, max_staleness=1, mixed=False
    )
    watch = Watch()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        run = ScriptedRun(
            Path(folder) / "checkpoints",
            plan,
            script=Script(tokens=TOKENS, token_seconds=token_seconds, slots=slots, jitter=JITTER),
            num_prompts=10_000,
            rollouts=workers,
            teachers=-(-workers // WORKERS_A_TEACHER),
            every_steps=1_000_000,
            supervision=Supervision(300.0, 60.0, 300.0, 0),
            call_seconds=300.0,  # two cores may still start dozens of actors when the first are drawn
            on_step=watch,
            steps=deque(maxlen=STEPS_KEPT),
            cast=cast,
        )
        assert run.run()
        run.check()
    counted = watch.moments[FIRST_ROUND - 1 : -ROUNDS_AFTER]
    first, last = counted[0], counted[-1]
    num_trajectories = sum(first.seconds <= at < last.seconds for at in watch.drawn_at)
    rate = num_trajectories / (last.seconds - first.seconds)
    quarters = [counted[(len(counted) - 1) * quarter // 4].rss_bytes for quarter in range(5)]
    ideal = workers * slots / (TOKENS * token_seconds) if token_seconds else None
    return {
        "workers": workers,
        "trajectories": num_trajectories,
        "trajectories_a_second": round(rate, 2),
        "ideal": None if ideal is None else round(ideal, 2),
        "share_of_ideal": None if ideal is None else round(rate / ideal, 3),
        "driver_cpu_ms": round(1e3 * (last.cpu_seconds - first.cpu_seconds) / num_trajectories, 3),
        "driver_rss_mb": [round(size / 1e6, 1) for size in quarters],
        "load_average": round(load, 1),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("scaling", "memory"), default="scaling")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--slots", type=int, default=8, help="responses that one worker draws at a time")
    parser.add_argument("--token-seconds", type=float, default=0.02)
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    cast = Cast()
    if options.case == "memory":
        measured = measure(cast, workers=16, rounds=100, slots=options.slots, token_seconds=0.0)
        print(json.dumps({"case": "memory"} | measured), flush=True)
        return
    for _ in range(options.repeats):
        for workers in options.workers:
            measured = measure(
                cast, workers=workers, rounds=options.rounds, slots=options.slots, token_seconds=options.token_seconds
            )
            print(json.dumps({"case": "scaling"} | measured), flush=True)


if __name__ == "__main__":
    main()
