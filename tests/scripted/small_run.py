"""A whole run of two tiny models in a process of its own: started, hit by a signal at a chosen moment, continued."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from minillm_ray.checkpoint.contents import PipelineState, read_pipeline_state
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.telemetry.events import Event, read_events
from minillm_ray.telemetry.files import read_jsonl
from scripted.models import save_tiny_folder

DEADLINE_SECONDS = 300.0
NUM_WORDS, NUM_PROMPTS, SEED = 48, 40, 10
PHASE = "1-minillm"


def write_small_run(folder: Path, *, steps: int, rollouts: int, minibatch: int, **sections: dict[str, Any]) -> Path:
    """folder/run.yaml, and the models and data that it names. Responses end at various lengths, or at 40 tokens.

    sections: keys added to those of a section, or put in their place.
    """
    words = tuple(f"<{k}>" for k in range(NUM_WORDS))
    sizes: dict[str, Any] = {"intermediate_size": 128, "max_position_embeddings": 64}
    save_tiny_folder(folder / "student", hidden_size=64, layers=1, words=words, seed=1, **sizes)
    save_tiny_folder(folder / "teacher", hidden_size=128, layers=2, words=words, seed=2, **sizes)
    draw = random.Random(0)
    rows = [{"instruction": " ".join(draw.choices(words[1:], k=draw.randint(3, 12)))} for _ in range(NUM_PROMPTS)]
    for name, part in (("train", rows), ("held_out", rows[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    phase = {"kind": "minillm", "steps": steps, "rollouts": rollouts, "minibatch": minibatch, "learning_rate": 1e-3}
    tree: dict[str, Any] = {
        "run_dir": "run",
        "seed": SEED,
        "phases": [phase],
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"train": "train.jsonl", "held_out": "held_out.jsonl", "template": "bare", "max_prompt_tokens": 24},
        "rollout": {"max_response_tokens": 40},
        "objective": {"alpha": 0},
        "evaluation": {"prompts": 2, "teacher_row": False},
        "pipeline": {"heartbeat_timeout_seconds": 10.0},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class SmallRun:
    """`train` on a run file, as a process. run_dir: where it writes."""

    def __init__(self, process: subprocess.Popen[bytes], run_dir: Path, output: Path) -> None:
        self._process, self.run_dir, self._output = process, run_dir, output

    @property
    def events(self) -> list[Event]:
        path = self.run_dir / "events.jsonl"
        return read_events(path) if path.exists() else []

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look at it ten times a second. Fails the test where the run ends first."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def wait_for_checkpoint(self, step: int) -> None:
        """Until one of this step or a later one is on disk."""
        self.wait_until(
            lambda: any(event.kind == "checkpoint_saved" and event.fields["step"] >= step for event in self.events)
        )

    def send(self, number: int) -> int:
        """Send a signal to the driver alone. Returns its exit status."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait(timeout=DEADLINE_SECONDS)

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of the run that Ray has given this name, "ray::TeacherActor" for one."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in below if " ".join(_command(process)).startswith(name)]

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")


@contextmanager
def train(run_file: Path, *overrides: str) -> Iterator[SmallRun]:
    """The run, at work. However the block ends, no process of it is left."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    settings = [part for override in overrides for part in ("-s", override)]
    output = run_file.parent / "output"
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "minillm_ray", "train", str(run_file), *settings],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield SmallRun(process, _run_dir(run_file, overrides), output)
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for other in left:
            with suppress(psutil.NoSuchProcess):  # Ray's own end on seeing their driver gone
                other.kill()


def loss_curve(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """What each optimizer step computed, bit for bit, as it was made last: no times. Every step has its place once."""
    computed: dict[int, dict[str, float]] = {}
    for row in read_jsonl(run_dir / "metrics.jsonl").rows:
        numbers = {
            name: value for name, value in row.items() if name.startswith(("objective/", "learner/", "rollout/"))
        }
        computed[row["step"]] = {name: value for name, value in numbers.items() if "second" not in name}
    return sorted(computed.items())


def pipeline_state(run_dir: Path) -> PipelineState:
    """Of the newest checkpoint."""
    return read_pipeline_state(max((run_dir / "checkpoints" / PHASE).glob("step-*")))


def assert_trained_once(run_dir: Path, *, rounds: int, rollouts: int) -> None:
    """The ledger of the last checkpoint: the prompts of that many rounds, from the first on, and nothing else."""
    state = pipeline_state(run_dir)
    expected = Ledger(NUM_PROMPTS, seed=SEED)
    expected.trained(expected.take(rounds * rollouts))
    assert (state.rounds, state.ledger) == (rounds, expected.state())


def _run_dir(run_file: Path, overrides: tuple[str, ...]) -> Path:
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run_dir":
            return Path(value)
    return run_file.parent / "run"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
