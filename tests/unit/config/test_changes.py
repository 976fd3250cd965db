"""Which settings a continued run may change: where and how it runs, never what it computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.config import load_config
from minillm_ray.config.changes import _MAY_CHANGE, fixed_changes

WriteRun = Callable[..., Path]


def dumped(path: Path, *overrides: str) -> dict[str, Any]:
    return load_config(path, overrides).model_dump(mode="json")


@pytest.fixture
def run_file(write_run: WriteRun) -> Path:
    return write_run()


def test_the_same_settings_are_no_change(run_file: Path) -> None:
    """However often the file is read."""
    assert fixed_changes(dumped(run_file), dumped(run_file)) == []


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "rollout.replicas=3",
        "teacher.tensor_parallel=2",
        "learner.ranks=2",
        "learner.micro_batch_tokens=64",
        "objective.logits_memory_mb=7",
        "pipeline.mode=async",
        "weights.max_mismatch_nats=0.5",
        "checkpoint.every_steps=3",
        "telemetry.samples_per_step=9",
        "ray.address=10.0.0.1:6379",
    ],
)
def test_where_and_how_a_run_works_may_change(override: str, run_file: Path) -> None:
    """Sizes of the cluster, memory, deadlines, how often something is written."""
    assert dumped(run_file) != dumped(run_file, override)
    assert fixed_changes(dumped(run_file), dumped(run_file, override)) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=11", "seed: was 10, is 11"),
        ("objective.gamma=0.5", "objective.gamma: was None, is 0.5"),
        ("phases.0.steps=4", "phases.0.steps: was 2, is 4"),
        ("rollout.max_response_tokens=8", "rollout.max_response_tokens: was 16, is 8"),
        ("rollout.top_k=5", "rollout.top_k: was None, is 5"),
        ("learner.weight_decay=0.5", "learner.weight_decay: was 1e-06, is 0.5"),
        ("teacher.payload=topk", "teacher.payload: was 'hidden', is 'topk'"),
        ("evaluation.prompts=7", "evaluation.prompts: was 128, is 7"),
    ],
)
def test_what_a_run_computes_may_not(override: str, line: str, run_file: Path) -> None:
    """Each with the key, the value of the run and the value that is asked for now."""
    assert fixed_changes(dumped(run_file), dumped(run_file, override)) == [line]


def test_every_changed_setting_is_listed_in_order(run_file: Path) -> None:
    """The user corrects all of them at once."""
    lines = fixed_changes(dumped(run_file), dumped(run_file, "seed=3", "learner.eps=1e-6", "rollout.replicas=2"))
    assert [line.partition(":")[0] for line in lines] == ["learner.eps", "seed"]


def test_a_phase_more_or_less_is_a_change(run_file: Path, write_run: WriteRun, run_tree: dict[str, Any]) -> None:
    """Every setting of the phase that only one of the two has."""
    before = dumped(run_file)
    phases = [{"kind": "sft", "model": "student"}, *run_tree["phases"]]
    lines = fixed_changes(before, dumped(write_run(phases=phases)))
    assert "phases.0.kind: was 'minillm', is 'sft'" in lines
    assert any(line.startswith("phases.1.steps: was None") for line in lines)


def test_every_name_in_the_list_is_a_setting(run_file: Path) -> None:
    """A misspelt one would silently forbid what should be free."""
    tree = dumped(run_file)
    for name in _MAY_CHANGE:
        node = tree
        for part in name.split("."):
            assert part in node, name
            node = node[part]
