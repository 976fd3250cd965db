"""SIGTERM, as `ray job stop` sends it: an orderly end where there is something to save, an immediate one elsewhere."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from minillm_ray.config.errors import Terminated


@contextmanager
def orderly_stop(grace_seconds: float) -> Iterator[Callable[[], bool]]:
    """Within the block a first SIGTERM only makes the yielded function return True.

    That function raises Terminated once `grace_seconds` have passed since; a second SIGTERM raises it at once.
    """
    asked_at: list[float] = []

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if asked_at:
            raise Terminated
        asked_at.append(time.monotonic())

    def stop_asked() -> bool:
        if asked_at and time.monotonic() - asked_at[0] > grace_seconds:
            raise Terminated
        return bool(asked_at)

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield stop_asked
    finally:
        signal.signal(signal.SIGTERM, before)
