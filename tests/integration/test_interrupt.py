"""Ctrl-C and SIGTERM: a run stops every actor and says so, whatever it was doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 15


@pytest.mark.parametrize(
    ("sent", "status", "said"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Stopped by SIGTERM")]
)
def test_a_signal_in_the_middle_of_training_stops_every_process(
    sent: signal.Signals, status: int, said: str, tmp_path: Path
) -> None:
    """Exit status 130 (143) within 15 s, one line, no traceback, no process left."""
    command = [sys.executable, "-m", "minillm_ray", "train", str(ROOT / "configs" / "quickstart.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "stderr").open("wb") as stderr:
        run = subprocess.Popen(
            [*command, "-s", f"run_dir={tmp_path / 'run'}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            preexec_fn=heed_interrupts,
        )
    try:
        wait_until_training(run, tmp_path / "stderr")
        started = psutil.Process(run.pid).children(recursive=True)
        assert any("Supervised" in " ".join(process.cmdline()) for process in started)
        run.send_signal(sent)
        assert run.wait(timeout=DEADLINE_SECONDS) == status
    finally:
        run.kill()
    message = (tmp_path / "stderr").read_text()
    assert said in message
    assert "Traceback" not in message
    _, alive = psutil.wait_procs(started, timeout=DEADLINE_SECONDS)
    assert alive == []


def heed_interrupts() -> None:
    """A test run in the background ignores SIGINT and its children would inherit that; at a terminal they do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_training(run: subprocess.Popen, stderr: Path) -> None:
    """Until the first optimizer step is reported."""
    deadline = time.monotonic() + 180
    while "sft-teacher step" not in stderr.read_text():
        assert run.poll() is None, stderr.read_text()
        assert time.monotonic() < deadline, stderr.read_text()
        time.sleep(0.2)
