"""Seconds and memory of one MiniLLM step, whole, against two of TRL's trainers on the same models and prompts.

    python benchmarks/step.py --steps 6 --rounds 3
    python benchmarks/step.py --sampler-threads 2 --case minillm_ray --case trl_minillm

A random Llama-like teacher of 17M parameters and a student of 5M over a vocabulary of 32,000; each step 32 prompts of
32 tokens, 128 new tokens (the end token has its chance of 1 in 32,000, for all alike), AdamW, float32, two threads.

    minillm_ray        `minillm-ray train`: Ray, vLLM engines, sync mode, alpha 0
    minillm_ray_async  the same with mode async: the next responses are drawn while these train, by weights one step old
    minillm_ray_mixed  sync mode with alpha 0.2: the teacher's share of each draw
    trl_minillm        trl.experimental.minillm.MiniLLMTrainer of trl 1.14.2, the last release that ships it
    trl_distillation   trl.DistillationTrainer, beta 1: the exact divergence alone, no return of later tokens

Rounds of all cases follow one another, each case in processes of its own, whose threads wait as each package has it.
A step is the time from the end of one to the end of the next; the first is left out, with mode async the last too:
nothing is drawn beside it. Processor time is that of all processes of a case, Ray's own among them, over the same
steps: it says what a step costs also where others use the machine. Memory is the sum of their proportional set sizes at
its highest. Everything is written below --scratch, the venv of TRL too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

TRL_VERSION = "1.14.2"
VOCABULARY = 32_000
PROMPT_TOKENS, RESPONSE_TOKENS, PROMPTS_PER_STEP = 32, 128, 32
LAYERS_AND_WIDTH = {"teacher": (8, 256), "student": (4, 128)}
OPTIMIZER = {"learning_rate": 1e-5, "betas": (0.9, 0.95), "weight_decay": 1e-6, "max_gradient_norm": 1.0}
MARK = "MINILLM_STEP_BENCHMARK"
SAMPLE_SECONDS = 4.0
"""Between two looks at the memory: one takes the kernel a tenth of a second and more, of the case's own cores."""
MIB = 2**20


def write_models(scratch: Path) -> None:
    """Both models, with one tokenizer that has a word for each id."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<eos>", "=>", *(f"w{k}" for k in range(2, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, (layers, width) in LAYERS_AND_WIDTH.items():
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(scratch / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>").save_pretrained(
            scratch / name
        )


def write_rows(path: Path, count: int) -> None:
    """Instructions of 31 words; the cue after them is the 32nd token."""
    rows = (
        {"instruction": " ".join(f"w{2 + (37 * row + 101 * k) % (VOCABULARY - 2)}" for k in range(PROMPT_TOKENS - 1))}
        for row in range(count)
    )
    path.write_text("".join(json.dumps(row | {"input": "", "output": "w2"}) + "\n" for row in rows))


def trl_python(scratch: Path) -> Path:
    """The interpreter of a venv with TRL and this interpreter's torch."""
    import torch

    venv = scratch / "trl-venv"
    python = venv / "bin" / "python"
    ready = venv / f".trl-{TRL_VERSION}"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--retries", "1"]
        index = os.environ.get("TORCH_CPU_INDEX")
        torch_pin = f"torch=={torch.__version__.partition('+')[0]}"
        subprocess.run([*pip, *(["--extra-index-url", index] if index else []), torch_pin], check=True)
        subprocess.run([*pip, f"trl=={TRL_VERSION}"], check=True)
        ready.touch()
    return python


def run_ours(
    scratch: Path, options: argparse.Namespace, *, alpha: float, run: str, mode: str = "sync"
) -> dict[str, Any]:
    """`minillm-ray train`; the closing measurements are outside the timed steps.

    Roles that work in turn have all threads each; a mixed response is drawn by both engines at once, which share them.
    The student's engine has options.sampler_threads where it works in its turn, and else one.
    """
    threads = options.threads
    engine_threads = max(1, threads // 2) if alpha else threads
    sampler_threads = options.sampler_threads if mode == "sync" and not alpha else 1
    config = {
        "run_dir": str(scratch / "runs" / run),
        "phases": [
            {
                "kind": "minillm",
                "steps": options.steps,
                "rollouts": PROMPTS_PER_STEP,
                "minibatch": PROMPTS_PER_STEP,
                "learning_rate": OPTIMIZER["learning_rate"],
            }
        ],
        "student": {"model": str(scratch / "student")},
        "teacher": {"model": str(scratch / "teacher"), "cpus": engine_threads, "probe_max_gb": 0},
        "data": {
            "train": str(scratch / "rows.jsonl"),
            "held_out": str(scratch / "rows.jsonl"),
            "held_out_rows": 1,
            "template": "bare",
            "max_prompt_tokens": PROMPT_TOKENS,
        },
        "rollout": {"max_response_tokens": RESPONSE_TOKENS, "cpus": sampler_threads},
        "objective": {"alpha": alpha},
        "pipeline": {"mode": mode},
        "learner": {
            "cpus": threads,
            "micro_batch_tokens": PROMPTS_PER_STEP * (PROMPT_TOKENS + RESPONSE_TOKENS),
            **{name: OPTIMIZER[name] for name in ("betas", "weight_decay", "max_gradient_norm")},
        },
        "checkpoint": {"every_steps": 1_000_000},
        "evaluation": {"prompts": 1, "teacher_row": False},
        "telemetry": {"probe_every": None},
    }
    path = scratch / "runs" / f"{run}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    run_marked([sys.executable, "-m", "minillm_ray", "train", str(path)], options)
    lines = (scratch / "runs" / run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "pipeline/step_seconds/total" in row]
    if mode == "async":
        rows = rows[:-1]
    parts = {
        "generate": "rollout/generate_seconds/total",
        "score": "teacher/score_seconds/total",
        "train": "learner/step_seconds/total",
        "publish_and_pull": "weights/publish_and_pull_seconds/total",
    }
    return {
        "ended": [row["time"] for row in rows],
        "response_tokens": [row["rollout/response_tokens/mean"] for row in rows],
        "parts": {part: [row[name] for row in rows] for part, name in parts.items()},
        "sampler_threads": sampler_threads,
    }


def run_trl(scratch: Path, options: argparse.Namespace, *, trainer: str, run: str) -> dict[str, Any]:
    job = OPTIMIZER | {
        "trainer": trainer,
        "student": str(scratch / "student"),
        "teacher": str(scratch / "teacher"),
        "rows": str(scratch / "rows.jsonl"),
        "out": str(scratch / "runs" / run),
        "steps": options.steps,
        "threads": options.threads,
        "prompts_per_step": PROMPTS_PER_STEP,
        "response_tokens": RESPONSE_TOKENS,
        "micro_batch": options.trl_micro_batch,
    }
    path = scratch / "runs" / f"{run}.json"
    path.write_text(json.dumps(job))
    worker = Path(__file__).with_name("step_trl.py")
    output = run_marked([str(trl_python(scratch)), str(worker), str(path)], options)
    return json.loads(output.splitlines()[-1])


CASES: dict[str, Callable[[Path, argparse.Namespace, str], dict[str, Any]]] = {
    "minillm_ray": lambda scratch, options, run: run_ours(scratch, options, alpha=0.0, run=run),
    "minillm_ray_async": lambda scratch, options, run: run_ours(scratch, options, alpha=0.0, run=run, mode="async"),
    "minillm_ray_mixed": lambda scratch, options, run: run_ours(scratch, options, alpha=0.2, run=run),
    "trl_minillm": lambda scratch, options, run: run_trl(scratch, options, trainer="minillm", run=run),
    "trl_distillation": lambda scratch, options, run: run_trl(scratch, options, trainer="distillation", run=run),
}


def run_marked(command: list[str], options: argparse.Namespace) -> str:
    """Run it to its end; what it printed. All its processes carry this script's mark in their environment."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


class Watch:
    """What all marked processes but this one take, sampled in a thread."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._processor: list[tuple[float, float]] = []
        """Seconds since the epoch, and seconds of processor time of those that live then."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def processor_seconds(self, begin: float, end: float) -> float:
        """Between two moments, by the samples around them; nobody may end meanwhile."""
        moments, totals = zip(*self._processor, strict=True)
        return float(np.interp(end, moments, totals) - np.interp(begin, moments, totals))

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            now = time.time()
            sizes = [_bytes_and_seconds(process) for process in Path("/proc").glob("[0-9]*")]
            self.peak_bytes = max(self.peak_bytes, sum(size for size, _ in sizes))
            self._processor.append((now, sum(seconds for _, seconds in sizes)))


def _bytes_and_seconds(process: Path) -> tuple[int, float]:
    """Proportional set size and processor time of a marked process; 0 of any other and of one that has just ended."""
    try:
        if process.name == str(os.getpid()) or MARK_LINE not in (process / "environ").read_bytes():
            return 0, 0.0
        rollup = (process / "smaps_rollup").read_text()
        user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0, 0.0
    size = next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return size, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


MARK_LINE = f"{MARK}={uuid.uuid4()}".encode()
os.environ[MARK] = MARK_LINE.decode().partition("=")[2]


def busy_share(before: tuple[float, float]) -> float:
    """Share of all cores that was busy since `before`."""
    busy, total = cpu_times()
    return round((busy - before[0]) / max(total - before[1], 1e-9), 2)


def cpu_times() -> tuple[float, float]:
    """Busy and total time of all cores since boot, in the kernel's ticks (Linux)."""
    fields = [float(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="may be repeated; default all")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run, the first uncounted")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each case, in turn")
    parser.add_argument("--threads", type=int, default=2, help="threads of each of our roles, and of TRL's process")
    parser.add_argument(
        "--sampler-threads",
        type=int,
        default=1,
        help="of the student's engine in sync mode without mixing; its operators are short: not all processors gain",
    )
    parser.add_argument("--trl-micro-batch", type=int, default=8, help="sequences in one of TRL's passes")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/minillm-step-benchmark"))
    options = parser.parse_args()
    if options.steps < 3:
        parser.error(f"--steps is {options.steps}; expected at least 3, since first and last are not always counted")
    scratch: Path = options.scratch.resolve()
    (scratch / "runs").mkdir(parents=True, exist_ok=True)
    if not (scratch / "teacher").exists():
        write_models(scratch)
    write_rows(scratch / "rows.jsonl", PROMPTS_PER_STEP * options.steps)
    if any(name.startswith("trl") for name in options.case or CASES):
        trl_python(scratch)
    counted: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for name in options.case or CASES:
            times = cpu_times()
            with Watch() as watch:
                result = CASES[name](scratch, options, f"{name}-{int(time.time())}-{number}")
            ended = result["ended"]
            seconds = [after - before for before, after in pairwise(ended)]
            counted.setdefault(name, []).extend(seconds)
            line = {
                "case": name,
                "round": number,
                "step_seconds": {
                    "median": round(statistics.median(seconds), 3),
                    "best": round(min(seconds), 3),
                    "all": [round(value, 3) for value in seconds],
                },
                "median_over_rounds": round(statistics.median(counted[name]), 3),
                "best_over_rounds": round(min(counted[name]), 3),
                "response_tokens": round(statistics.mean(result["response_tokens"]), 1),
                "processor_seconds_a_step": round(watch.processor_seconds(ended[0], ended[-1]) / len(seconds), 2),
                "peak_pss_mib": round(watch.peak_bytes / MIB),
                "threads": options.threads,
                "busy_share_of_cores": busy_share(times),
                "load_average": round(os.getloadavg()[0], 2),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }
            if parts := result.get("parts"):
                line["sampler_threads"] = result["sampler_threads"]
                line["parts_median_seconds"] = {part: round(statistics.median(v[1:]), 3) for part, v in parts.items()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
