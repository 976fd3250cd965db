"""The shell around a rollout worker, without its process."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.rollout.actor import RolloutActor


def test_what_is_abandoned_is_dropped_and_nothing_else() -> None:
    """A response that is asked for after the call may be under way before it."""
    shell: Any = RolloutActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = shell.__new__(shell)
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
