"""FSDP2: parameters, gradients and optimizer state cut over the ranks, one unit a decoder layer."""

from typing import Literal

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from minillm_ray.engines.prune import find_layers
from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.student import Student

ComputeDtype = Literal["float32", "bfloat16"]


def shard(student: Student, rank: Rank, *, compute_dtype: ComputeDtype) -> None:
    """Shard `student` in place over all ranks. Weights and gradients stay float32; the passes run in compute_dtype."""
    mesh = init_device_mesh("cuda" if rank.device.type == "cuda" else "cpu", (rank.size,))
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, compute_dtype), reduce_dtype=torch.float32)
    num_layers = student.model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for layer in student.model.get_submodule(find_layers(student.model, num_layers)):  # type: ignore[arg-type, attr-defined]
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(student, mesh=mesh, mp_policy=policy)
