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

from minillm_ray.config.errors import InputError, Terminated
from minillm_ray.config.placement import RolePlacement, plan_placement, require_capacity
from minillm_ray.config.run import RunConfig


@dataclass(frozen=True)
class ClusterFacts:
    """device: "cpu" or "gpu"; plan: what the run asks for, known to fit."""

    device: str
    plan: dict[str, RolePlacement]


@contextmanager
def cluster(config: RunConfig) -> Iterator[ClusterFacts]:
    """Connect or start, check that the plan fits, and leave nothing of ours running at the end.

    Raises InputError if the cluster cannot be reached or has too few CPUs or GPUs.
    """
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        plan_and_check(config, cpus=float(os.cpu_count() or 1), gpus=_local_gpus())
        _start(config)
    signal.signal(signal.SIGTERM, _on_sigterm)  # after ray.init, which sets its own
    try:
        resources = ray.cluster_resources()
        yield plan_and_check(config, cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
    finally:
        ray.shutdown()


def plan_and_check(config: RunConfig, *, cpus: float, gpus: float) -> ClusterFacts:
    """The placement on a cluster of that size. Raises InputError where it does not fit."""
    device = config.ray.device
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    plan = plan_placement(config, device=device)
    require_capacity(plan, cpus=cpus, gpus=gpus)
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
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=None if memory is None else int(memory * 1e9),
        _node_ip_address="127.0.0.1",
    )


def _local_gpus() -> float:
    import torch

    return float(torch.cuda.device_count())


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Terminated
