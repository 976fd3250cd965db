"""One Ray cluster on this machine for all of the folder, and actors that go from one run to the next."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from scripted.actors import Script
from scripted.crew import Cast, ScriptedRun

from minillm_ray.pipeline.training import RoundPlan

TESTS = Path(__file__).parents[1]
_CAST = 4
LOOPBACK = "127.0.0.2"
"""Ray takes 127.0.0.1 for the address of the network card; this one it leaves alone."""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs of its own (scripted actors ask for none); tests may add nodes and take them away."""
    before = dict(os.environ)
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: paths of Unix sockets end at 107 characters
    os.makedirs(Path(temporary) / "ray")
    os.environ |= {
        "RAY_TMPDIR": temporary,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        "RAY_free_objects_period_milliseconds": "0",  # what is no longer referenced is gone at once
    }
    node = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": LOOPBACK}
    started = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=started.address, _node_ip_address=LOOPBACK, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()
    os.environ.clear()
    os.environ |= before
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="package")
def cast(cluster: Cluster) -> Cast:
    return Cast()


@pytest.fixture
def scripted_run(cast: Cast, tmp_path: Path) -> Callable[..., ScriptedRun]:
    """A run of ten rounds of two steps each, unless a test says otherwise; `plan` holds what it says of that."""
    cast.wait_for_a_run(_CAST)

    def make(*, plan: dict[str, Any] | None = None, **changes: Any) -> ScriptedRun:
        whole = {"rollouts": 6, "minibatch": 3, "inner_epochs": 1, "rounds": 10, "max_staleness": 1, "mixed": False}
        script = Script(token_seconds=0.01, score_seconds=0.01, step_seconds=0.03)
        settings = {"folder": tmp_path / "checkpoints", "script": script, "cast": cast} | changes
        return ScriptedRun(plan=RoundPlan(**(whole | (plan or {}))), **settings)

    return make
