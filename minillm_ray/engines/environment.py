"""The environment that a vLLM engine needs in its process, set before vllm is first imported there.

The engine lives in the actor's own process, so that the step loop, the weights and the callbacks are ours.
"""


def engine_environment(*, device: str, threads: int, kv_cache_gib: float) -> dict[str, str]:
    """Environment variables of one engine process. device: "cpu" or "gpu"; threads and kv_cache_gib count on CPU."""
    shared = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "gpu":
        return shared
    return shared | {
        "OMP_NUM_THREADS": str(threads),
        # vLLM's own binding takes a core away from each engine and pins all engines to the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(kv_cache_gib))),
        # The first log-prob would otherwise compile a kernel: slow, and it needs a C++ compiler.
        "TORCH_COMPILE_DISABLE": "1",
    }
