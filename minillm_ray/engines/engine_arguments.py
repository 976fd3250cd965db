"""vLLM's own engine arguments beside ours: a user may set any that we do not, and a typo is an error."""

import difflib
from collections.abc import Mapping
from typing import Any

from minillm_ray.config.errors import InputError


def merge_arguments(
    ours: Mapping[str, Any], defaults: Mapping[str, Any], users: Mapping[str, Any], known: frozenset[str]
) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs. ours: not for users to set; defaults: theirs where they say so.

    Raises InputError for an argument that vLLM does not know (the nearest known one is named) or that is ours.
    """
    for name in users:
        if name not in known:
            near = difflib.get_close_matches(name, known - set(ours), n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise InputError(
                f"teacher.engine_arguments.{name} is not an engine argument of the installed vLLM. {hint}"
                f"Expected the name of a field of vllm.EngineArgs, such as gpu_memory_utilization"
            )
        if name in ours:
            raise InputError(
                f"teacher.engine_arguments.{name} is {users[name]!r}, but the teacher sets this argument "
                f"itself, to {ours[name]!r}, and relies on it. Remove it from teacher.engine_arguments"
            )
    return {**defaults, **users, **ours}
