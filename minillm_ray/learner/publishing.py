"""How a learner group publishes its weights: the publisher of rank 0, as a run's configuration says."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_ray.engines.weight_transfer import open_group
from minillm_ray.weights.buffers import ObjectStorePublisher, plan_layout
from minillm_ray.weights.nccl import NcclPublisher, ReplicaControl, TransferGroup
from minillm_ray.weights.transport import Publisher, Transport


@dataclass(frozen=True)
class PublishingSpec:
    """dtype: torch's name of what floating-point tensors are published in; replica_workers: GPUs of one rollout
    replica; timeout_seconds: of a meeting and of a transfer with `nccl`."""

    transport: Transport
    dtype: str
    bucket_bytes: int
    replica_workers: int
    timeout_seconds: float


def make_publisher(
    spec: PublishingSpec,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    own_handle: Callable[[], Any],
    free_address: Callable[[], str],
) -> Publisher:
    """tensors: of the student, for their names and shapes. own_handle: of the actor that publishes. free_address:
    host:port on its node."""
    dtype = getattr(torch, spec.dtype)
    if spec.transport == "object_store":
        return ObjectStorePublisher(plan_layout(tensors, dtype=dtype, bucket_bytes=spec.bucket_bytes))

    def meet(control: ReplicaControl, kept: Mapping[str, Tensor]) -> TransferGroup:
        return open_group(
            control,
            kept,
            address=free_address(),
            num_workers=spec.replica_workers,
            buffer_bytes=spec.bucket_bytes,
        )

    return NcclPublisher(dtype=dtype, own_handle=own_handle, open_group=meet, timeout_seconds=spec.timeout_seconds)
