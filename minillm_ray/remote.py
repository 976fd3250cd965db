"""Waiting for Ray actors: every wait has a deadline, and what goes wrong is said in the run's own words."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from minillm_ray.config.errors import InputError, RunError

Item = TypeVar("Item")

_FETCH_SECONDS = 30.0


@dataclass(frozen=True)
class Beat:
    """An actor's sign of life.

    seconds_since_progress: how long ago its own work last moved on; busy_seconds: how long it has worked in all.
    """

    seconds_since_progress: float
    busy_seconds: float = 0.0


class ActorClient:
    """What every actor of a run is asked. handle: of the actor. Calls return references at once."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def ready(self) -> Any:
        """Answers once the actor can work."""
        return self.handle.ready.remote()

    def ping(self) -> Any:
        """A Beat."""
        return self.handle.ping.remote()

    def stop(self) -> None:
        """End the actor, whatever it is doing."""
        ray.kill(self.handle)


class WorkFailed(RunError):
    """Remote work was not done: its actor died, missed the deadline or raised. It may be done by another actor."""


class PeerUnavailable(Exception):
    """An actor could not do its work because another one, which it called, did not answer."""


class PeerFailed(PeerUnavailable):
    """The other one answered with an exception."""


def get(references: Any, *, timeout_seconds: float, work: str) -> Any:
    """`ray.get` with a deadline. `work` names what is waited for, as in "teacher 0: scoring".

    Raises WorkFailed for a missed deadline, a dead actor or an exception in it; an actor's own InputError or RunError
    as it is.
    """
    try:
        with _signals_as_they_are():
            return ray.get(references, timeout=timeout_seconds)
    except GetTimeoutError:
        raise WorkFailed(
            f"{work} did not finish within {timeout_seconds:g} s. See the files in RUN/logs; if the work is only slow, "
            f"raise pipeline.call_timeout_seconds or pipeline.startup_timeout_seconds"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, InputError | RunError):
            raise error.cause from None
        raise WorkFailed(f"{work} failed: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise WorkFailed(f"{work}: its actor died ({_last_line(error)}). See the files in RUN/logs") from error
    except RayError as error:
        raise WorkFailed(
            f"{work} failed: {type(error).__name__}: {_last_line(error)}. See the files in RUN/logs"
        ) from error


def ready_among(references: Sequence[Any], *, timeout_seconds: float) -> list[Any]:
    """Those of the references whose value, or failure, is there, once one is or `timeout_seconds` are over."""
    if not references:
        time.sleep(timeout_seconds)
        return []
    with _signals_as_they_are():
        there, missing = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
        if not there:
            there, _ = ray.wait(missing, num_returns=1, timeout=timeout_seconds, fetch_local=False)
    return there


def value_of(reference: Any) -> Any:
    """The value of a call that is over; it must be small.

    Raises what the call raised; InputError, RunError and PeerUnavailable without Ray's wrapping.
    """
    try:
        with _signals_as_they_are():
            return ray.get(reference, timeout=_FETCH_SECONDS)
    except RayTaskError as error:
        if isinstance(error.cause, InputError | RunError | PeerUnavailable):
            raise error.cause from None
        raise


def is_lost_object(error: BaseException) -> bool:
    """The call could not begin, or fell, because an object that it was given went with the node that held it."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, ObjectLostError)


def describe(error: BaseException) -> str:
    """One line on what went wrong with a call."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {_last_line(error.cause)}"
    return f"{type(error).__name__}: {_last_line(error)}"


def even_shares(items: Sequence[Item], num_shares: int) -> list[list[Item]]:
    """The items in order, cut into `num_shares` runs whose lengths differ by at most one."""
    bounds = [len(items) * k // num_shares for k in range(num_shares + 1)]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """What a signal's handler raises in the middle of Ray's compiled code comes out as the cause of a SystemError."""
    try:
        yield
    except SystemError as error:
        raise error.__cause__ or error from None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
