"""Speed and memory of the objective against its floor, the bare matrix products, and against dense autograd.

    OMP_WAIT_POLICY=passive python benchmarks/objective.py --threads 2
    python benchmarks/objective.py --case qwen --device cuda --dtype bfloat16 --logits-memory-mb 2048

OMP_WAIT_POLICY=passive is how the package starts a learner that shares the cores with other roles: there threads that
spin at a barrier cost the walk, which has many short passes, more than the products. One that works in its turn, as in
sync mode, is started without it.

One JSON line a case. `fused` is `minillm_loss` and its backward, `dense` is `minillm_loss_dense` and its backward,
`floor` is the four products of an exact gradient on whole matrices: h_s W_s.T, h_t W_t.T, g W_s and g.T h_s. They are
timed in turn, round after round, in one process; seconds are the best and the median of the rounds. Peak memory is
measured in a process of its own for each variant, at its second call: the first one leaves the matrix library the
buffers into which it packs operands (10 MiB), whoever makes it. On a CPU it is the kernel's high-water mark of resident
memory (VmHWM, reset before the call), on a GPU the allocator's. `extra` is what the call added, less the gradients
themselves.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm_ray.objective import ObjectiveSettings, minillm_loss, minillm_loss_dense


@dataclass(frozen=True)
class Case:
    """num_tokens packed tokens in 16 sequences, vocabulary V, hidden sizes of student and teacher."""

    num_tokens: int
    vocab_size: int
    d_student: int
    d_teacher: int


CASES = {
    "small": Case(num_tokens=4096, vocab_size=32_000, d_student=128, d_teacher=256),
    "qwen": Case(num_tokens=1024, vocab_size=151_936, d_student=896, d_teacher=2048),
}
NUM_SEQUENCES = 16
MIB = 2**20


@dataclass(frozen=True)
class Inputs:
    """Random hidden states and heads; log-probs recorded by a sampler a little behind the student, with a mixture."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    tokens: Tensor
    cu_seqlens: Tensor
    sampler_logprob: Tensor
    behavior_logprob: Tensor

    @property
    def gradient_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.student_hidden, self.student_head))

    def forget_gradients(self) -> None:
        self.student_hidden.grad = self.student_head.grad = None


def make_inputs(case: Case, *, device: str, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator(device=device).manual_seed(0)

    def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        made = torch.empty(rows, columns, device=device, dtype=dtype)
        return made.normal_(0.0, scale, generator=generator)

    recorded = -torch.rand(case.num_tokens, device=device, generator=generator) - 9
    lengths = case.num_tokens // NUM_SEQUENCES
    return Inputs(
        normal(case.num_tokens, case.d_student).requires_grad_(),
        normal(case.vocab_size, case.d_student, case.d_student**-0.5).requires_grad_(),
        normal(case.num_tokens, case.d_teacher),
        normal(case.vocab_size, case.d_teacher, case.d_teacher**-0.5),
        torch.randint(case.vocab_size, (case.num_tokens,), device=device, generator=generator),
        torch.arange(0, case.num_tokens + 1, lengths, device=device, dtype=torch.int32),
        recorded,
        recorded + 0.1,
    )


def run_fused(inputs: Inputs, settings: ObjectiveSettings) -> None:
    inputs.forget_gradients()
    minillm_loss(**vars(inputs), settings=settings).loss.backward()


def run_dense(inputs: Inputs, settings: ObjectiveSettings) -> None:
    inputs.forget_gradients()
    minillm_loss_dense(**vars(inputs), settings=settings).loss.backward()


@torch.no_grad()
def run_floor(inputs: Inputs, settings: ObjectiveSettings) -> None:
    inputs.forget_gradients()
    logits = inputs.student_hidden @ inputs.student_head.t()
    torch.mm(inputs.teacher_hidden, inputs.teacher_head.t(), out=logits)
    inputs.student_hidden.grad = logits @ inputs.student_head
    inputs.student_head.grad = logits.t() @ inputs.student_hidden


VARIANTS: dict[str, Callable[[Inputs, ObjectiveSettings], None]] = {
    "floor": run_floor,
    "fused": run_fused,
    "dense": run_dense,
}


def seconds(function: Callable[[], None], *, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_variants(inputs: Inputs, settings: ObjectiveSettings, *, device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round; one round before them is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_index in range(repeats + 1):
        for name, variant in VARIANTS.items():
            spent = seconds(lambda v=variant: v(inputs, settings), device=device)
            if round_index:
                taken[name].append(spent)
    return taken


def peak_extra_bytes(name: str, case: Case, settings: ObjectiveSettings, *, device: str, dtype: torch.dtype) -> int:
    """What the second call adds to the memory in use at its highest point, less its gradients."""
    inputs = make_inputs(case, device=device, dtype=dtype)
    VARIANTS[name](inputs, settings)
    inputs.forget_gradients()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        VARIANTS[name](inputs, settings)
        return torch.cuda.max_memory_allocated() - before - inputs.gradient_bytes
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    VARIANTS[name](inputs, settings)
    return status_bytes("VmHWM") - before - inputs.gradient_bytes


def cpu_name() -> str:
    """The processor's name where Linux gives one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def status_bytes(field: str) -> int:
    """A memory field of this process's status, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory can be measured on Linux only")


def measured_in_child(name: str, case: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--case", case, "--memory-of", name, "--threads", str(options.threads)]
    command += ["--device", options.device, "--dtype", options.dtype]
    command += ["--logits-memory-mb", str(options.logits_memory_mb)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(name: str, options: argparse.Namespace) -> dict[str, object]:
    case, dtype = CASES[name], getattr(torch, options.dtype)
    settings = ObjectiveSettings(logits_memory_mb=options.logits_memory_mb)
    memory = {} if options.no_memory else {v: measured_in_child(v, name, options) for v in VARIANTS}
    inputs = make_inputs(case, device=options.device, dtype=dtype)
    taken = time_variants(inputs, settings, device=options.device, repeats=options.repeats)
    best = {variant: min(values) for variant, values in taken.items()}
    median = {variant: statistics.median(values) for variant, values in taken.items()}
    products = 2 * case.num_tokens * case.vocab_size * (3 * case.d_student + case.d_teacher)
    line: dict[str, object] = {
        "case": name,
        **asdict(case),
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_name(),
        "threads": options.threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average": round(os.getloadavg()[0], 2),
        "repeats": options.repeats,
        "logits_memory_mb": options.logits_memory_mb,
        "torch": torch.__version__,
        "best_seconds": {k: round(v, 4) for k, v in best.items()},
        "median_seconds": {k: round(v, 4) for k, v in median.items()},
        "fused_over_floor": round(best["fused"] / best["floor"], 3),
        "fused_over_dense": round(best["fused"] / best["dense"], 3),
        "floor_gflops_per_second": round(products / best["floor"] / 1e9, 1),
    }
    if memory:
        line["peak_extra_mib"] = {k: round(v / MIB, 1) for k, v in memory.items()}
        line["extra_fused_over_dense"] = round(memory["fused"] / memory["dense"], 3)
        line["memory_measured_by"] = "torch allocator" if options.device == "cuda" else "VmHWM in a process of its own"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each variant")
    parser.add_argument("--repeats", type=int, default=3, help="counted rounds; each runs every variant once")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"], default="float32")
    parser.add_argument("--logits-memory-mb", type=int, default=ObjectiveSettings().logits_memory_mb)
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--memory-of", choices=VARIANTS, help="print the peak extra bytes of one variant and exit")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        settings = ObjectiveSettings(logits_memory_mb=options.logits_memory_mb)
        dtype = getattr(torch, options.dtype)
        print(peak_extra_bytes(options.memory_of, CASES[options.case], settings, device=options.device, dtype=dtype))
        return
    for name in CASES if options.case == "all" else [options.case]:
        print(json.dumps(report(name, options)), flush=True)


if __name__ == "__main__":
    main()
