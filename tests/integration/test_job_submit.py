"""`launch/submit.sh` on a real Ray head: the quick start, cut to two steps, as a job."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm_ray.telemetry.samples import read_samples

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A private head on loopback; yields the environment that reaches it. Ends only the processes that it started."""
    folder = Path(f"/tmp/mr{os.getpid()}")  # short: Unix socket paths end at 107 characters
    folder.mkdir()
    dashboard = free_port()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(RAY), "start", "--head", f"--port={free_port()}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        f"--metrics-export-port={free_port()}", "--min-worker-port=21000", "--max-worker-port=21200",
        "--num-cpus=2", "--object-store-memory=500000000", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    try:
        yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        end_processes_of(folder)


def end_processes_of(folder: Path) -> None:
    """SIGTERM, then SIGKILL, to the processes whose command line names the head's own folder."""
    ours = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or ())
    ]
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(ours, timeout=10)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="module")
def run_dir(head: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished job."""
    run_dir = tmp_path_factory.mktemp("job") / "run"
    settings = {
        "run_dir": run_dir,
        "phases.0.epochs": 1,
        "phases.1.epochs": 1,
        "phases.2.steps": 2,
        "phases.2.rollouts": 8,
        "phases.2.minibatch": 8,
        "data.train_rows": 128,
        "data.held_out_rows": 16,
        "telemetry.samples_per_step": 8,
    }
    overrides = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    submit = [str(ROOT / "launch" / "submit.sh"), str(ROOT / "configs" / "quickstart.yaml"), *overrides]
    started = time.monotonic()
    done = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=420)
    print(done.stdout[-6000:], done.stderr[-3000:], f"{time.monotonic() - started:.0f} s")
    assert done.returncode == 0
    assert "SUCCEEDED" in done.stdout.upper()
    return run_dir


def test_a_submitted_job_succeeds_and_leaves_the_student_on_disk(run_dir: Path) -> None:
    """The student loads in transformers; every file of a run is there."""
    assert AutoModelForCausalLM.from_pretrained(run_dir / "student").num_parameters() > 0
    for name in ("config.yaml", "metrics.jsonl", "events.jsonl", "samples.parquet"):
        assert (run_dir / name).is_file()


def test_the_tokens_in_the_samples_are_those_that_were_trained(run_dir: Path) -> None:
    """The divergence written beside each token, made in the training step, is that of the token's own state."""
    student = AutoModelForCausalLM.from_pretrained(run_dir / "phases" / "2-sft-student" / "best")
    teacher = AutoModelForCausalLM.from_pretrained(run_dir / "phases" / "1-sft-teacher" / "best")
    first_step = [sample for sample in read_samples(run_dir / "samples.parquet") if sample.step == 1]
    assert len(first_step) == 8
    for sample in first_step:
        ids = torch.tensor([*sample.prompt_token_ids, *sample.response_token_ids])[None]
        states = slice(len(sample.prompt_token_ids) - 1, -1)
        with torch.no_grad():
            log_q, log_p = (model(ids).logits[0, states].log_softmax(-1) for model in (student, teacher))
        np.testing.assert_allclose(sample.kl, (log_q.exp() * (log_q - log_p)).sum(-1), atol=1e-4)
