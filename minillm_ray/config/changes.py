"""What may differ between a run and the command that continues it: where and how it runs, never what it computes."""

from collections.abc import Mapping
from typing import Any

_MAY_CHANGE = (
    "run_dir",
    "rollout.replicas",
    "rollout.cpus",
    "rollout.kv_cache_gib",
    "rollout.tensor_parallel",
    "teacher.replicas",
    "teacher.cpus",
    "teacher.kv_cache_gib",
    "teacher.tensor_parallel",
    "teacher.pipeline_parallel",
    "teacher.engine_arguments",
    "teacher.probe_max_gb",
    "objective.logits_memory_mb",
    "learner.ranks",
    "learner.cpus",
    "learner.micro_batch_tokens",
    "learner.gradient_checkpointing",
    "evaluation.batch_size",
    "pipeline",
    "weights",
    "checkpoint",
    "telemetry",
    "ray",
)


def fixed_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line, "key: was A, is B", for each setting that differs and must not. Both are dumped configurations."""
    old, new = dict(_leaves(before, "")), dict(_leaves(now, ""))
    return [
        f"{key}: was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)


def _leaves(tree: Any, key: str) -> list[tuple[str, Any]]:
    items = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, Mapping) and tree else None
    if items is None:
        return [(key, tree)]
    return [leaf for name, value in items for leaf in _leaves(value, f"{key}.{name}" if key else str(name))]
