"""SIGTERM while there is something to save: asked once, a run may end its round; asked twice, it ends."""

import os
import signal
import time

import pytest

from minillm_ray.config.errors import Terminated
from minillm_ray.phases import stop
from minillm_ray.phases.stop import orderly_stop

pytestmark = pytest.mark.usefixtures("own_process_state")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_first_signal_is_a_wish() -> None:
    """It interrupts nothing; whoever asks hears of it, again and again."""
    with orderly_stop(grace_seconds=60.0) as stop_asked:
        assert not stop_asked()
        terminate()
        assert stop_asked()
        assert stop_asked()


def test_a_second_signal_ends_the_run_where_it_stands() -> None:
    """Whoever sends two does not want to wait."""
    with pytest.raises(Terminated), orderly_stop(grace_seconds=60.0):
        terminate()
        terminate()
        pytest.fail("went on")


def test_once_the_grace_is_over_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next question after that raises; those before it do not."""
    now = time.monotonic()
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    with orderly_stop(grace_seconds=5.0) as stop_asked:
        terminate()
        now += 5.0
        assert stop_asked()
        now += 0.1
        with pytest.raises(Terminated):
            stop_asked()


def test_without_a_signal_no_time_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace begins with the signal."""
    with orderly_stop(grace_seconds=0.001) as stop_asked:
        monkeypatch.setattr(stop.time, "monotonic", lambda: 1e9)
        assert not stop_asked()


@pytest.mark.parametrize("fails", [False, True])
def test_the_handler_of_before_is_back_after_the_block(fails: bool) -> None:
    """However the block ends: outside it SIGTERM means what it meant."""

    def handler(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, handler)
    try:
        with orderly_stop(grace_seconds=60.0):
            assert signal.getsignal(signal.SIGTERM) is not handler
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert signal.getsignal(signal.SIGTERM) is handler
