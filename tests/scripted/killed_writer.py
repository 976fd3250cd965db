"""Checkpoint writers that are killed: at every point where they touch the file system, or at moments drawn by a seed.

Run as a program of its own, so that forking is cheap: `killed_writer.py points|moments FOLDER`. It prints the number of
writers that were killed, or raises AssertionError.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm_ray.checkpoint.files import write_file
from minillm_ray.checkpoint.folder import begin, latest, remove_leftovers
from minillm_ray.checkpoint.manifest import read_manifest, verify_hashes

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
KEEP = 2
SMALL_FILE_BYTES, LARGE_FILE_BYTES = 1_000, 4_000_000
NUM_MOMENTS = 10


def write_checkpoints(folder: Path, steps: list[int], *, file_bytes: int, announce: Callable[[int], object]) -> None:
    """A checkpoint of two files at each of `steps`, each announced once it is sealed."""
    for step in steps:
        pending = begin(folder, step)
        records = [write_file(pending.path, name, content(step, file_bytes)) for name in ("driver", "learner/rank-0")]
        pending.seal(records, weight_version=step, keep=KEEP)
        announce(step)


def content(step: int, num_bytes: int) -> list[bytes]:
    return [bytes([step]) * num_bytes]


def die_before(event_number: int) -> None:
    """Let this process end by SIGKILL just before it touches the file system for the event_number-th time."""
    num_events = 0

    def count(event: str, _: Any = None) -> None:
        nonlocal num_events
        if event in EVENTS:
            num_events += 1
            if num_events == event_number:
                os.kill(os.getpid(), signal.SIGKILL)

    flush = os.fsync
    os.fsync = lambda handle: (count("open"), flush(handle))[1]  # between the bytes and their flushing
    sys.addaudithook(count)


def start(work: Callable[[], None]) -> int:
    """Process id of a child that does `work` and ends."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def check(folder: Path, announced: int, *, file_bytes: int) -> None:
    """What a run finds that starts after the death: everything that was announced, nothing broken, nothing left."""
    remove_leftovers(folder)
    warnings: list[str] = []
    found = latest(folder, warn=warnings.append)
    assert not warnings, warnings
    assert not announced or found is not None, "no checkpoint where one was announced"
    if found is not None:
        assert found.step >= announced, f"step {found.step} where {announced} was announced"
        for name in ("driver", "learner/rank-0"):
            assert (found.path / name).read_bytes() == content(found.step, file_bytes)[0]
    assert [entry.name for entry in folder.glob(".*")] == []
    for older in folder.iterdir():
        verify_hashes(older, read_manifest(older).files)
    step = (found.step if found else 0) + 1
    write_checkpoints(folder, [step], file_bytes=file_bytes, announce=lambda step: None)
    again = latest(folder, warn=warnings.append)
    assert again is not None
    assert again.step == step
    assert len(list(folder.glob("*"))) <= KEEP
    assert not warnings, warnings


def kill_at_every_point(folder: Path) -> int:
    """Also while an older checkpoint is removed, and while one of the same step is replaced (2 is written twice)."""
    for number in range(1, 1000):
        trial = folder / str(number)
        trial.mkdir()
        log = os.open(folder / f"{number}.log", os.O_CREAT | os.O_RDWR)

        def work(number: int = number, trial: Path = trial, log: int = log) -> None:
            die_before(number)
            write_checkpoints(
                trial,
                [1, 2, 2, 3],
                file_bytes=SMALL_FILE_BYTES,
                announce=lambda step: os.write(log, bytes([step])),
            )

        _, status = os.waitpid(start(work), 0)
        announced = os.pread(log, 100, 0)
        os.close(log)
        check(trial, announced[-1] if announced else 0, file_bytes=SMALL_FILE_BYTES)
        if status == 0:
            return number - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("the writer never ended by itself")


def kill_at_random_moments(folder: Path) -> int:
    """From the first sealed checkpoint on; files are large enough to be caught half written."""
    for seed in range(NUM_MOMENTS):
        trial = folder / str(seed)
        trial.mkdir()
        reader, writer = os.pipe()

        def work(trial: Path = trial, writer: int = writer) -> None:
            write_checkpoints(
                trial,
                list(range(1, 250)),
                file_bytes=LARGE_FILE_BYTES,
                announce=lambda step: os.write(writer, bytes([step])),
            )

        child = start(work)
        os.close(writer)
        announced = os.read(reader, 1)
        time.sleep(random.Random(seed).uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        announced += os.read(reader, 1000)
        os.close(reader)
        check(trial, announced[-1], file_bytes=LARGE_FILE_BYTES)
    return NUM_MOMENTS


if __name__ == "__main__":
    kill = {"points": kill_at_every_point, "moments": kill_at_random_moments}[sys.argv[1]]
    print(kill(Path(sys.argv[2])))
