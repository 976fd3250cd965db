"""A user may set any engine argument of vLLM that the teacher does not set itself, and a typo is an error."""

import pytest

from minillm_ray.config import InputError
from minillm_ray.engines.engine_arguments import merge_arguments

OURS = {"runner": "pooling", "enable_prefix_caching": True}
DEFAULTS = {"block_size": 32}
KNOWN = frozenset({*OURS, *DEFAULTS, "gpu_memory_utilization", "max_num_seqs"})


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        merge_arguments(OURS, DEFAULTS, {name: 7}, KNOWN)
    return str(caught.value)


def test_users_arguments_join_ours_and_replace_defaults() -> None:
    """Block size is a default, the runner is not."""
    merged = merge_arguments(OURS, DEFAULTS, {"max_num_seqs": 7, "block_size": 64}, KNOWN)
    assert merged == {**OURS, "block_size": 64, "max_num_seqs": 7}


def test_a_typo_names_the_nearest_argument() -> None:
    """vLLM's own error would name none."""
    message = refusal("gpu_memory_utilisation")
    assert "teacher.engine_arguments.gpu_memory_utilisation is not an engine argument" in message
    assert "Did you mean gpu_memory_utilization?" in message


def test_what_resembles_nothing_names_nothing() -> None:
    """A guess would mislead."""
    assert "Did you mean" not in refusal("zzz")


@pytest.mark.parametrize("name", sorted(OURS))
def test_an_argument_that_the_teacher_relies_on_is_refused_with_its_value(name: str) -> None:
    """Without prefix caching, for one, every verdict would compute the whole sequence."""
    message = refusal(name)
    assert f"teacher.engine_arguments.{name} is 7" in message
    assert f"to {OURS[name]!r}, and relies on it. Remove it" in message
