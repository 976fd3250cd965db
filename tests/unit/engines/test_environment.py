"""What a role's process is given before it starts."""

import os
import re
import subprocess
import sys

import pytest

from minillm_ray.engines.environment import thread_environment

_FAULTS_OF_TENSORS_MADE_AGAIN = """
import resource, sys, threading, torch
from minillm_ray.engines.environment import keep_freed_memory

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.empty(16 * 2**20).fill_(1.0)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def measure():
    faults(1)
    print(faults(8))

keep_freed_memory()
if sys.argv[1] == "first":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


def _page_faults(environment: dict[str, str], thread: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_TENSORS_MADE_AGAIN, thread],
        env=dict(os.environ) | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.parametrize("thread", ["first", "another"])
def test_large_tensors_made_again_and_again_take_no_new_pages(thread: str) -> None:
    """In the first thread, where evaluation samples, and in another, as those of an engine's loop and of autograd."""
    kept = thread_environment(1, in_turn=False)
    without = {name: value for name, value in kept.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    assert _page_faults(kept, thread) < 1000
    assert _page_faults(without, thread) > 100_000


def _spin_count(environment: dict[str, str]) -> int:
    """How often a waiting thread looks before it sleeps, by libgomp's own word."""
    ran = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        | environment
        | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    [count] = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", ran.stderr)
    return int(count)


def test_threads_wait_awake_only_where_nobody_else_wants_their_cores() -> None:
    assert _spin_count(thread_environment(2, in_turn=False)) == 0
    assert _spin_count(thread_environment(2, in_turn=True)) > 1000


def test_a_library_that_the_user_preloads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so")
    assert "LD_PRELOAD" not in thread_environment(1, in_turn=False)
    assert "MALLOC_CONF" not in thread_environment(1, in_turn=False)
