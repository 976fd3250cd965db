"""Section `weights`: how new student weights reach the rollout workers."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class WeightsSection(Section):
    """Published after every round, pulled and checked by every rollout worker before the next."""

    transport: Literal["object_store", "nccl"] = "object_store"
    """`object_store`: flat byte buffers in Ray's shared memory, read without a copy on every node that holds them.
    `nccl`: from GPU to GPU through vLLM's weight-transfer engine, a group of each replica's own with the learner; it
    keeps one more copy of the student on rank 0's GPU. Only where there are GPUs, and not yet tested on one."""
    bucket_mb: int = Field(256, ge=1)
    """Size of one buffer in MB. Smaller buckets lower the peak memory of publishing."""
    transfer_timeout_seconds: float = Field(300.0, gt=0)
    """With `nccl`: deadline for a replica to meet the learner, and for one transfer. Past it the group is given up."""
    max_mismatch_nats: float = Field(0.1, gt=0)
    """Mean gap between the samplers' log-probabilities and the learner's at equal weights. Above it the run stops:
    the samplers do not hold what was published. float32 stays below 1e-4, bfloat16 around 1e-2."""
