"""The environment variables of a role's process, set before torch or vllm is first imported there, and what they miss.

A vLLM engine lives in the actor's own process, so that the step loop, the weights and the callbacks are ours.
"""

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path

# Kept for ever, tensors of many sizes fill the memory; jemalloc's own rule for large ones keeps them not at all.
_KEEPING_RULES = "oversize_threshold:0,dirty_decay_ms:5000,muzzy_decay_ms:0,background_thread:true"


def engine_environment(*, device: str, threads: int, kv_cache_gib: float) -> dict[str, str]:
    """Environment variables of one engine process. device: "cpu" or "gpu"; threads and kv_cache_gib count on CPU."""
    shared = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        # The second, vLLM's choice where Triton works, as on GPUs, refuses logits processors of the first: ours draw.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    if device == "gpu":
        return shared
    return (
        shared
        | thread_environment(threads, in_turn=False)
        | {
            # vLLM's own binding takes a core away from each engine and pins all engines to the same ones.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(kv_cache_gib))),
            # The first log-prob would otherwise compile a kernel: slow, and it needs a C++ compiler.
            "TORCH_COMPILE_DISABLE": "1",
        }
    )


def thread_environment(threads: int, *, in_turn: bool) -> dict[str, str]:
    """Environment variables that give a CPU process `threads` threads, and memory that it keeps.

    in_turn: no other role of the run works while this one does. Its threads then spin for some milliseconds before
    they sleep, as OpenMP has it: to wake one takes a tenth of a millisecond at every operator. Where others want the
    cores, spinning threads that wait for each other are several times slower: there they sleep at once.
    """
    waiting = {} if in_turn else {"OMP_WAIT_POLICY": "passive"}
    return {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"} | waiting | _keeping_environment()


def _keeping_environment() -> dict[str, str]:
    """For Ray's own jemalloc, which keeps what is freed for some seconds; nothing where the user preloads a library, or
    Ray has none.

    glibc hands each large tensor back to the kernel, which clears its pages again for the next one: a quarter of the
    processor time of a training step. No setting of glibc 2.36 keeps large blocks that are aligned, as torch's are.
    """
    ray = find_spec("ray")
    if ray is None or ray.origin is None or "LD_PRELOAD" in os.environ:
        return {}
    library = Path(ray.origin).parent / "core" / "libjemalloc.so"
    if not library.is_file():
        return {}
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": _KEEPING_RULES}


def keep_freed_memory() -> None:
    """Hold this process's first thread to the rules of its environment; nothing where it was given none.

    jemalloc 5.3.0 keeps its own threshold for large blocks, 8 MiB, in the arena that it has before it reads its rules:
    that of the first thread, and of others where there are many.
    """
    mallctl = getattr(ctypes.CDLL(None), "mallctl", None)
    if mallctl is not None and os.environ.get("MALLOC_CONF") == _KEEPING_RULES:
        size = ctypes.c_size_t(2**62)
        mallctl(b"arena.0.oversize_threshold", None, None, ctypes.byref(size), ctypes.c_size_t(ctypes.sizeof(size)))
