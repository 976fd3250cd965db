"""The Ray cluster of a run: the one that is named, or one of this machine for this run alone."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import ray
from ray.exceptions import RayError

from minillm_ray.config.errors import InputError, RunError, Terminated
from minillm_ray.config.placement import RolePlacement, plan_placement, require_capacity
from minillm_ray.config.run import RunConfig


@dataclass(frozen=True)
class ClusterFacts:
    """device: "cpu" or "gpu"; plan: what the run asks for at its start, by role."""

    device: str
    plan: dict[str, RolePlacement]


@contextmanager
def cluster(config: RunConfig) -> Iterator[ClusterFacts]:
    """Connect or start, and leave nothing of ours running at the end.

    Raises InputError if the cluster that is named cannot be reached, or this machine has too few CPUs or GPUs. A named
    cluster may grow: what does not fit yet waits for nodes.
    """
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        gpus = _local_gpus()
        facts = cluster_facts(config, gpus=gpus)
        require_capacity(tuple(facts.plan.values()), cpus=float(os.cpu_count() or 1), gpus=gpus)
        _start(config)
    signal.signal(signal.SIGTERM, _on_sigterm)  # after ray.init, which sets its own
    try:
        yield cluster_facts(config, gpus=ray.cluster_resources().get("GPU", 0.0))
    finally:
        ray.shutdown()


def cluster_facts(config: RunConfig, *, gpus: float) -> ClusterFacts:
    """The placement on a cluster that has so many GPUs now. Raises InputError where models cannot run there at all."""
    device = config.ray.device
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    plan = plan_placement(config, device=device)
    return ClusterFacts(device, {item.role: item for item in plan})


def _connect(address: str) -> None:
    try:
        ray.init(address=address, namespace="minillm", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"no Ray cluster answers at {address} ({reason}). Start one, correct ray.address or RAY_ADDRESS, or unset "
            f"both to run on this machine alone"
        ) from None


def _start(config: RunConfig) -> None:
    memory = config.ray.object_store_gb
    try:
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=None if memory is None else int(memory * 1e9),
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # Ray raises just that where a process of its own is not up within 30 s
        raise RunError(
            f"Ray did not start on this machine: {error} If it is only busy, try again; Ray's own logs are in "
            f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs"
        ) from error


def _local_gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Terminated
