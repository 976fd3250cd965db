"""A run's cluster is checked before it is started, and is left whatever happens. Ray itself is scripted here."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from scripted.cluster import ScriptedCluster

from minillm_ray.config import InputError, load_config
from minillm_ray.config.errors import RunError, Terminated
from minillm_ray.phases.authentication import set_ray_environment
from minillm_ray.phases.cluster import cluster, cluster_facts

WriteRun = Callable[..., Path]


def test_a_local_cluster_is_started_used_and_ended(write_run: WriteRun, scripted_cluster: ScriptedCluster) -> None:
    """Of this machine alone, without Ray's output in the user's terminal."""
    with cluster(load_config(write_run(ray__object_store_gb=0.5))) as facts:
        assert scripted_cluster.calls == ["init"]
        assert facts.device == "cpu"
        assert set(facts.plan) == {"rollout", "teacher", "learner"}
    assert scripted_cluster.calls == ["init", "shutdown"]
    given = scripted_cluster.init_arguments
    assert (given["address"], given["num_cpus"], given["_node_ip_address"]) == ("local", 4, "127.0.0.1")
    assert (given["log_to_driver"], given["logging_level"]) == (False, logging.ERROR)
    assert given["object_store_memory"] == 500_000_000


def test_a_plan_that_does_not_fit_this_machine_starts_nothing(
    write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """The check needs no cluster."""
    with (
        pytest.raises(InputError, match=r"needs 5 CPUs; the cluster has 4\. Set rollout\.replicas=4"),
        cluster(load_config(write_run(rollout__replicas=5))),
    ):
        pytest.fail("entered")
    assert scripted_cluster.calls == []


def test_a_plan_that_does_not_fit_a_named_cluster_goes_on_and_waits_there(
    write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """Nodes may join: what is missing is said while replicas wait for their place."""
    scripted_cluster.resources = {"CPU": 2.0}
    config = load_config(write_run(ray__address="10.0.0.1:6379", teacher__replicas=3))
    with cluster(config) as facts:
        assert facts.plan["teacher"].replicas == 3
    assert scripted_cluster.calls == ["init", "shutdown"]


def test_a_local_cluster_that_does_not_come_up_is_a_run_that_failed(
    write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """Ray raises a bare Exception there, on a machine that is too busy: no mistake of the user's, and none of ours."""
    scripted_cluster.refuses = Exception("The current node timed out during startup.")
    with (
        pytest.raises(RunError, match=r"Ray did not start on this machine: The current node timed out .*/logs"),
        cluster(load_config(write_run())),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), Terminated()])
def test_the_cluster_is_left_whatever_happens(
    error: BaseException, write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """An error, Ctrl-C and SIGTERM alike, and each goes on to the caller."""
    with pytest.raises(type(error)), cluster(load_config(write_run())):
        raise error
    assert scripted_cluster.calls == ["init", "shutdown"]


def test_sigterm_ends_the_run_like_an_error(write_run: WriteRun, scripted_cluster: ScriptedCluster) -> None:
    """As `ray job stop` sends it: the cluster is left before the process ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # were it not handled, this process would end here
    with pytest.raises(Terminated), cluster(load_config(write_run())):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1.0)  # a handler runs between two instructions: leave it some
    assert scripted_cluster.calls == ["init", "shutdown"]


def test_the_configurations_address_wins_over_the_environment_and_that_over_a_local_cluster(
    write_run: WriteRun, scripted_cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray job submit` sets RAY_ADDRESS; a file that names a cluster means it."""
    monkeypatch.setenv("RAY_ADDRESS", "from-environment:1")
    with cluster(load_config(write_run())):
        assert scripted_cluster.init_arguments["address"] == "from-environment:1"
    with cluster(load_config(write_run(ray__address="from-file:1"))):
        assert scripted_cluster.init_arguments["address"] == "from-file:1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Could not find a head\nmore lines"), "Could not find a head"),
        (ConnectionError(), "ConnectionError"),
        (ValueError("bad address"), "bad address"),
        (ray.exceptions.AuthenticationError("wrong token"), "wrong token"),
    ],
)
def test_a_cluster_that_does_not_answer_is_an_input_error(
    error: Exception, reason: str, write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """Address, first line of the reason, ways out; whatever Ray raises, a message or none."""
    scripted_cluster.refuses = error
    with pytest.raises(InputError) as caught, cluster(load_config(write_run(ray__address="10.0.0.1:6379"))):
        pytest.fail("entered")
    assert f"no Ray cluster answers at 10.0.0.1:6379 ({reason}" in str(caught.value)
    assert "correct ray.address or RAY_ADDRESS, or unset both" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_run_on_gpus_where_there_are_any_unless_told_otherwise(write_run: WriteRun) -> None:
    """ray.device=auto follows the cluster; cpu and gpu are taken at their word."""
    config = load_config(write_run())
    assert cluster_facts(config, gpus=0).device == "cpu"
    assert cluster_facts(config, gpus=3).device == "gpu"
    assert cluster_facts(load_config(write_run(ray__device="cpu")), gpus=3).device == "cpu"
    assert cluster_facts(load_config(write_run(ray__device="gpu")), gpus=0).device == "gpu"


def test_gpus_that_this_machine_does_not_have_are_refused(
    write_run: WriteRun, scripted_cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other node will come."""
    monkeypatch.setattr("minillm_ray.phases.cluster._local_gpus", lambda: 0.0)
    config = load_config(write_run(ray__device="gpu"))
    with pytest.raises(InputError, match="needs 3 GPUs; the cluster has 0"), cluster(config):
        pytest.fail("entered")
    assert scripted_cluster.calls == []


@pytest.mark.usefixtures("own_process_state")
def test_a_local_cluster_gets_a_token_of_its_own(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one each run, unless the user chose; a named cluster keeps its own ways."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    set_ray_environment(load_config(write_run(ray__address="10.0.0.1:6379")))
    assert "RAY_AUTH_MODE" not in os.environ
    tokens = set()
    for _ in range(2):
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        set_ray_environment(load_config(write_run(ray__address=None)))
        assert os.environ["RAY_AUTH_MODE"] == "token"
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    set_ray_environment(load_config(write_run()))
    assert "RAY_AUTH_TOKEN" not in os.environ
