"""What a configuration asks of a cluster: how many actors of each role, and what each needs.

On GPUs every replica keeps its own for the whole run. On CPUs the roles of a synchronous run work in turn, so each
role may use every core: a role is checked alone, and an actor reserves only its turn's share of its threads.
"""

import math
from dataclasses import dataclass

from minillm_ray.config.errors import InputError
from minillm_ray.config.run import RunConfig

_ROLES = 3


@dataclass(frozen=True)
class RolePlacement:
    """Actors of one role. cpus: threads of one actor; gpus: GPUs of one actor."""

    role: str
    key: str
    replicas: int
    cpus: int
    gpus: int

    @property
    def reserved_cpus(self) -> float:
        """The `num_cpus` of one actor: its turn's share on a CPU cluster, one core for the host side of a GPU."""
        return 1.0 if self.gpus else math.floor(self.cpus / _ROLES * 1e4) / 1e4


def plan_placement(config: RunConfig, *, device: str) -> tuple[RolePlacement, ...]:
    """One RolePlacement a role. device: "cpu" or "gpu"."""
    on_gpu = device == "gpu"
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    if not on_gpu:
        if config.weights.transport == "nccl":
            raise InputError(
                "weights.transport is nccl, which sends from GPU to GPU; expected object_store where there is no GPU. "
                "Set weights.transport=object_store"
            )
        for key, parts in (
            ("rollout.tensor_parallel", rollout.tensor_parallel),
            ("teacher.tensor_parallel", teacher.tensor_parallel),
            ("teacher.pipeline_parallel", teacher.pipeline_parallel),
        ):
            if parts > 1:
                role = key.partition(".")[0]
                raise InputError(
                    f"{key} is {parts}; expected 1 where there is no GPU. "
                    f"Raise {role}.cpus to give a replica more threads"
                )
    teacher_gpus = teacher.tensor_parallel * teacher.pipeline_parallel
    return (
        RolePlacement("rollout", "rollout.replicas", rollout.replicas, rollout.cpus, on_gpu * rollout.tensor_parallel),
        RolePlacement("teacher", "teacher.replicas", teacher.replicas, teacher.cpus, on_gpu * teacher_gpus),
        RolePlacement("learner", "learner.ranks", learner.ranks, learner.cpus, int(on_gpu)),
    )


def require_capacity(plan: tuple[RolePlacement, ...], *, cpus: float, gpus: float) -> None:
    """Raise InputError if the cluster's `cpus` and `gpus` cannot hold the plan: what is there, what was asked."""
    wanted_gpus = sum(item.replicas * item.gpus for item in plan)
    if wanted_gpus > gpus:
        parts = " + ".join(f"{item.key}={item.replicas} x {item.gpus}" for item in plan)
        raise InputError(f"{parts} needs {wanted_gpus} GPUs; the cluster has {gpus:g}. Lower the counts or add nodes")
    for item in plan:
        needed = item.replicas * item.cpus
        if not item.gpus and needed > cpus:
            fit = int(cpus // item.cpus)
            remedy = f"Set {item.key}={fit}" if fit else f"Set {item.role}.cpus={max(1, int(cpus))}"
            raise InputError(
                f"{item.key}={item.replicas} x {item.role}.cpus={item.cpus} needs {needed} CPUs; "
                f"the cluster has {cpus:g}. {remedy}, or add nodes"
            )


def describe_placement(plan: tuple[RolePlacement, ...]) -> str:
    """One line a role, for `--dry-run`."""
    lines = []
    for item in plan:
        unit = f"{item.gpus} GPU" if item.gpus else f"{item.cpus} CPU"
        lines.append(f"  {item.role:8} {item.replicas} x {unit}")
    return "\n".join(lines)
