"""Trajectories as one safetensors file: every array packed end to end, lengths as cumulative sums.

For B trajectories: prompt_index int64 [B], truncated bool [B], mixed bool [B] (it has a behavior_logprob); prompt_ids
cut by prompt_cu_seqlens int64 [B+1]; response_ids, sampler_logprob and weight_version cut by cu_seqlens int64 [B+1];
behavior_logprob of the mixed ones alone, in their order.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from minillm_ray.checkpoint.files import FileRecord, write_tensors
from minillm_ray.data.trajectory import Trajectory


def write_trajectories(folder: Path, name: str, trajectories: Sequence[Trajectory]) -> FileRecord:
    """Write folder/name. Raises CheckpointError."""
    mixed = [t.behavior_logprob for t in trajectories if t.behavior_logprob is not None]
    tensors = {
        "prompt_index": np.array([t.prompt_index for t in trajectories], dtype=np.int64),
        "truncated": np.array([t.truncated for t in trajectories], dtype=np.bool_),
        "mixed": np.array([t.behavior_logprob is not None for t in trajectories], dtype=np.bool_),
        "prompt_cu_seqlens": _cumulative([len(t.prompt_ids) for t in trajectories]),
        "prompt_ids": _packed([t.prompt_ids for t in trajectories], np.int32),
        "cu_seqlens": _cumulative([len(t.response_ids) for t in trajectories]),
        "response_ids": _packed([t.response_ids for t in trajectories], np.int32),
        "sampler_logprob": _packed([t.sampler_logprob for t in trajectories], np.float32),
        "weight_version": _packed([t.weight_version for t in trajectories], np.int32),
        "behavior_logprob": _packed(mixed, np.float32),
    }
    return write_tensors(folder, name, tensors)


def read_trajectories(path: Path) -> list[Trajectory]:
    """What `write_trajectories` was given, in its order, bit for bit."""
    packed = load_file(path)
    prompts, responses = (list(pairwise(packed[name])) for name in ("prompt_cu_seqlens", "cu_seqlens"))
    trajectories, num_mixed = [], 0
    for row, ((prompt_start, prompt_end), (start, end)) in enumerate(zip(prompts, responses, strict=True)):
        behavior_logprob = None
        if packed["mixed"][row]:
            behavior_logprob = packed["behavior_logprob"][num_mixed : num_mixed + end - start]
            num_mixed += end - start
        trajectories.append(
            Trajectory(
                prompt_index=int(packed["prompt_index"][row]),
                prompt_ids=packed["prompt_ids"][prompt_start:prompt_end],
                response_ids=packed["response_ids"][start:end],
                sampler_logprob=packed["sampler_logprob"][start:end],
                behavior_logprob=behavior_logprob,
                weight_version=packed["weight_version"][start:end],
                truncated=bool(packed["truncated"][row]),
            )
        )
    return trajectories


def _cumulative(lengths: list[int]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _packed(arrays: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    for array in arrays:
        assert array.dtype == dtype, f"{array.dtype}, not {dtype.__name__}"
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
