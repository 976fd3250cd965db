"""The shell around a rollout worker, without its process."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from minillm_ray.mixture.exchange import Proposal
from minillm_ray.remote import PeerFailed, PeerUnavailable
from minillm_ray.rollout.actor import RolloutActor


def shell() -> Any:
    """An actor that was not built."""
    shape: Any = RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    return shape.__new__(shape)


def test_what_is_abandoned_is_dropped_and_nothing_else() -> None:
    """A response that is asked for after the call may be under way before it."""
    actor = shell()
    actor._tasks = {}
    release = asyncio.Event()

    async def respond(*_: object, **__: object) -> tuple[str, str]:
        await release.wait()
        return "trajectory", "counts"

    actor._worker = SimpleNamespace(respond=respond)

    async def body() -> None:
        old, new = (asyncio.ensure_future(actor.respond("train", 0, 0, None, name, None)) for name in ("old", "new"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await actor.abandon(["old"])
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await old
        assert await new == ("counts", "trajectory")
        assert actor._tasks == {}

    asyncio.run(body())


@pytest.mark.parametrize(
    "raised, is_raised, says",
    [
        (RayTaskError("extend", "", FloatingPointError("no numbers")), PeerFailed, "FloatingPointError: no numbers"),
        (ActorDiedError(), PeerUnavailable, "the teacher of s1, s2 gave no verdict"),
        (None, PeerUnavailable, "the teacher of s1, s2 gave no verdict"),
    ],
)
def test_a_teacher_that_gives_no_verdict_is_told_from_one_that_raises(
    raised: Exception | None, is_raised: type[Exception], says: str
) -> None:
    """The pipeline blames the teacher, and not the replica that asked; silence ends at the deadline."""
    actor = shell()
    actor._verdict_seconds = 0.05

    async def extend(_: object) -> None:
        if raised is not None:
            raise raised
        await asyncio.sleep(30)

    teacher = SimpleNamespace(extend=SimpleNamespace(remote=extend))
    proposal = Proposal(np.zeros(2, np.int32), 1, 0, np.zeros(1, np.float32))
    with pytest.raises(PeerUnavailable, match=says) as caught:
        asyncio.run(actor._extend(teacher, [("s1", proposal), ("s2", proposal)]))
    assert type(caught.value) is is_raised
