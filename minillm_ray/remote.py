"""Waiting for Ray actors: every wait has a deadline, and what goes wrong is said in the run's own words."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from minillm_ray.config.errors import InputError, RunError

Item = TypeVar("Item")


def get(references: Any, *, timeout_seconds: float, work: str) -> Any:
    """`ray.get` with a deadline. `work` names what is waited for, as in "teacher 0: scoring".

    Raises RunError for a missed deadline, a dead actor or an exception in it; an actor's InputError as it is.
    """
    try:
        return ray.get(references, timeout=timeout_seconds)
    except GetTimeoutError:
        raise RunError(
            f"{work} did not finish within {timeout_seconds:g} s. See the files in RUN/logs; if the work is only slow, "
            f"raise pipeline.call_timeout_seconds or pipeline.startup_timeout_seconds"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, InputError | RunError):
            raise error.cause from None
        raise RunError(f"{work} failed: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise RunError(f"{work}: its actor died ({_last_line(error)}). See the files in RUN/logs") from error
    except RayError as error:
        raise RunError(
            f"{work} failed: {type(error).__name__}: {_last_line(error)}. See the files in RUN/logs"
        ) from error


def even_shares(items: Sequence[Item], num_shares: int) -> list[list[Item]]:
    """The items in order, cut into `num_shares` runs whose lengths differ by at most one."""
    bounds = [len(items) * k // num_shares for k in range(num_shares + 1)]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
