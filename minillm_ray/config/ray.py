"""Section `ray`: the cluster that the actors run on."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class RaySection(Section):
    """RAY_ADDRESS, as `ray job submit` sets it, wins over starting a local cluster."""

    address: str | None = None
    """An existing cluster; null for RAY_ADDRESS, and without that a cluster of this machine for this run alone."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """What models run on. `auto`: GPUs where the cluster has any."""
    object_store_gb: float | None = Field(None, gt=0)
    """Shared memory of a local cluster; null for Ray's default. Two versions of the weights must fit."""
