"""The ranks of a learner group and the few sums that they share."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    """One of `size` ranks. in_group: there is a process group, always so with several ranks."""

    index: int
    size: int
    device: torch.device
    in_group: bool

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all ranks; every rank calls it."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """Element-wise maxima over all ranks; every rank calls it."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: list[float], operation: dist.ReduceOp) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation)
        return tensor.tolist()


def join_ranks(index: int, size: int, address: str, *, device: str, timeout_seconds: float, always_group: bool) -> Rank:
    """Join the group whose rank 0 listens at `address` (host:port): gloo on CPU, nccl on GPU, one deadline for all.

    A single rank needs no group unless `always_group` (sharding for mixed precision does).
    """
    torch_device = torch.device("cuda", 0) if device == "gpu" else torch.device("cpu")
    in_group = size > 1 or always_group
    if in_group:
        dist.init_process_group(
            "nccl" if device == "gpu" else "gloo",
            init_method=f"tcp://{address}",
            rank=index,
            world_size=size,
            timeout=timedelta(seconds=timeout_seconds),
        )
    return Rank(index, size, torch_device, in_group)
