"""How replicas come into being on the cluster: a placement group each, then the actor in it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from minillm_ray.config.placement import RolePlacement


@dataclass(frozen=True)
class ActorLauncher:
    """placement: what one replica needs. environment: of its process. create: (actor options, number) -> client.

    A replica's workers (tensor parallel) run in its own placement group, on one node.
    """

    placement: RolePlacement
    environment: dict[str, str]
    create: Callable[[dict[str, Any], int], Any]

    def reserve(self, number: int) -> tuple[PlacementGroup, Any]:
        """A placement group, and a reference that is there once it is placed."""
        group = placement_group([self._bundle()], strategy="STRICT_PACK")
        return group, group.ready()

    def missing(self) -> str:
        """What one replica needs, beside what no one has taken on any node."""
        free = ray.available_resources()
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in self._bundle().items())
        there = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in self._bundle())
        return (
            f"one {self.placement.role} replica needs {wanted} on one node; {there} are free in the whole cluster. "
            f"Add a node, or ask for fewer: {self.placement.key}"
        )

    def start(self, number: int, reservation: PlacementGroup) -> Any:
        """The client of replica `number`, whose actor is on its way."""
        hub = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HOME") if name in os.environ}
        options = {
            "num_cpus": self.placement.reserved_cpus,
            "num_gpus": self.placement.gpus,
            "max_restarts": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                reservation, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
            "runtime_env": {"env_vars": self.environment | hub},
        }
        return self.create(options, number)

    def release(self, reservation: PlacementGroup) -> None:
        """Give the resources back; whatever still runs there ends."""
        remove_placement_group(reservation)

    def _bundle(self) -> dict[str, float]:
        amounts = {"CPU": self.placement.reserved_cpus, "GPU": float(self.placement.gpus)}
        return {name: amount for name, amount in amounts.items() if amount}


def as_actor(decorated: Any) -> Any:
    """What `@ray.remote` made of a class, as the type checker cannot see it."""
    return decorated
