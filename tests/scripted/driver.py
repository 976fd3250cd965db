"""A driver to be killed: `driver.py ADDRESS FOLDER MAX_STALENESS` trains with scripted actors, slowly, on a cluster."""

import sys
from pathlib import Path

import ray

from minillm_ray.pipeline.training import RoundPlan
from scripted.actors import Script
from scripted.crew import ScriptedRun


def main(address: str, folder: str, max_staleness: str) -> None:
    ray.init(address=address, _node_ip_address=address.partition(":")[0], log_to_driver=False)
    ScriptedRun(
        Path(folder),
        RoundPlan(rollouts=6, minibatch=3, inner_epochs=1, rounds=10, max_staleness=int(max_staleness), mixed=False),
        script=Script(token_seconds=0.01, step_seconds=0.3),
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
