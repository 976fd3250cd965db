"""A minibatch whose gradient was not finite, written so that the step can be made again and looked into."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from minillm_ray.learner.scored_batch import Scored
from minillm_ray.telemetry.files import write_atomically


def write_bad_batch(path: Path, scored: Sequence[Scored]) -> None:
    """One safetensors file: for trajectory k `k.prompt_ids`, `k.response_ids`, `k.sampler_logprob`,
    `k.behavior_logprob` where it was mixed, and its payload's arrays: `k.hidden`, or `k.topk_ids` and the others of a
    top k, or `k.token_logprob`. Hidden states of a bfloat16 teacher keep their bits, as uint16."""
    arrays: dict[str, np.ndarray] = {}
    for number, (trajectory, payload) in enumerate(scored):
        arrays |= {
            f"{number}.prompt_ids": trajectory.prompt_ids,
            f"{number}.response_ids": trajectory.response_ids,
            f"{number}.sampler_logprob": trajectory.sampler_logprob,
        }
        arrays |= {f"{number}.{name}": array for name, array in payload.arrays.items()}
        if trajectory.behavior_logprob is not None:
            arrays[f"{number}.behavior_logprob"] = trajectory.behavior_logprob
    write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
