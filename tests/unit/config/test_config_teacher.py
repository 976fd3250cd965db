"""Section `teacher`: settings of vLLM's engine are settings of that engine only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.config import InputError, load_config

WriteRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel", 2),
        ("pipeline_parallel", 2),
        ("quantization", "fp8"),
        ("engine_arguments", {"max_num_seqs": 4}),
    ],
)
def test_the_fallback_engine_takes_no_setting_of_vllm(name: str, value: Any, write_run: WriteRun) -> None:
    """It would be ignored without a word; vLLM takes each of them."""
    changes = {f"teacher__{name}": value}
    assert getattr(load_config(write_run(**changes)).teacher, name) == value
    with pytest.raises(
        InputError, match=rf"{name} is .*, but teacher.engine is transformers.* set teacher.engine=vllm"
    ):
        load_config(write_run(**changes, teacher__engine="transformers"))


def test_an_engine_argument_can_be_given_on_the_command_line(write_run: WriteRun) -> None:
    """By its name, into a mapping that is free."""
    config = load_config(write_run(), ["teacher.engine_arguments.gpu_memory_utilization=0.8"])
    assert config.teacher.engine_arguments == {"gpu_memory_utilization": 0.8}


def test_an_engine_of_another_name_is_refused(write_run: WriteRun) -> None:
    """There are two."""
    with pytest.raises(InputError, match=r"teacher\.engine is 'sglang'"):
        load_config(write_run(teacher__engine="sglang"))
