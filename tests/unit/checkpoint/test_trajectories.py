"""Trajectories come back from disk as they went."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.checkpoint.trajectories import read_trajectories, write_trajectories
from minillm_ray.data.trajectory import Trajectory


def make(prompt: int, response: int, *, mixed: bool, truncated: bool, seed: int) -> Trajectory:
    generator = np.random.default_rng(seed)
    logprobs = [-generator.exponential(size=response).astype(np.float32) for _ in range(2)]
    if response:
        logprobs[0][0] = -np.inf if seed % 2 else np.nan  # whatever bits there are
    return Trajectory(
        prompt_index=int(generator.integers(2**40)),
        prompt_ids=generator.integers(2**31 - 1, size=prompt).astype(np.int32),
        response_ids=generator.integers(2**31 - 1, size=response).astype(np.int32),
        sampler_logprob=logprobs[0],
        behavior_logprob=logprobs[1] if mixed else None,
        weight_version=generator.integers(2**31 - 1, size=response).astype(np.int32),
        truncated=truncated,
    )


def bits(trajectory: Trajectory) -> dict[str, Any]:
    values = {field.name: getattr(trajectory, field.name) for field in fields(Trajectory)}
    return {
        name: (str(value.dtype), value.tobytes()) if isinstance(value, np.ndarray) else (type(value), value)
        for name, value in values.items()
    }


@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans(), st.booleans()), max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_field_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int, bool, bool]], seed: int
) -> None:
    """Any number of them, mixed and unmixed side by side, empty ones, none at all; in the order given."""
    trajectories = [
        make(prompt, response, mixed=mixed, truncated=truncated, seed=seed + number)
        for number, (prompt, response, mixed, truncated) in enumerate(shapes)
    ]
    folder = tmp_path_factory.mktemp("file")
    record = write_trajectories(folder, "untrained.safetensors", trajectories)
    found = read_trajectories(folder / record.name)
    assert [bits(trajectory) for trajectory in found] == [bits(trajectory) for trajectory in trajectories]
