"""How fast a version of the weights reaches four readers through Ray's object store, and how long generation pauses.

    OMP_WAIT_POLICY=passive python benchmarks/weights.py --rounds 10
    python benchmarks/weights.py --case stall

Publisher and readers are Ray actors on this machine, around what the learner and the samplers use (weights/buffers.py).
`publish` ends when every buffer and the manifest are in the store; `verified` when the last of the readers has hashed
what it read and holds its tensors as views; `copied` when the last one has also copied them into tensors of its own, as
an engine does. Beside them, in the same rounds:

    plain      one copy of the same bytes by one thread, into memory that is there already
    readers    the copies of the readers alone, all at once and unhashed: what no transport can avoid

One JSON line a size, times being the best and the median of the rounds, after two that bring the memory in.
`version_over_plain` compares the bytes of one version with the plain copy, `delivered_over_plain` those that arrive at
all readers. The stall is that of a real vLLM engine with 32 requests in flight: the pause between two steps in which it
loads a version; the step after it computes the keys anew.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from minillm_ray.engines.environment import engine_environment
from minillm_ray.weights.buffers import ObjectStorePublisher, plan_layout, unpack

MB = 1_000_000
WARM_UP_ROUNDS = 2
LAYER_SHAPES = ((1024, 1024),) * 4 + ((1024, 2816),) * 3
LAYER_MB = sum(rows * columns for rows, columns in LAYER_SHAPES) * 4 / MB
STALL_REQUESTS, STALL_PROMPT_TOKENS, STALL_TOKENS = 32, 32, 96


@ray.remote(num_cpus=0)
class Publishing:
    """Stands for learner rank 0: float32 weights of about `megabytes`, in matrices like a model's."""

    def __init__(self, megabytes: int, bucket_megabytes: int) -> None:
        torch.set_num_threads(1)
        layers = max(1, round(megabytes / LAYER_MB))
        self._tensors = [
            (f"layers.{layer}.{number}", torch.randn(shape))
            for layer in range(layers)
            for number, shape in enumerate(LAYER_SHAPES)
        ]
        layout = plan_layout(self._tensors, dtype=torch.float32, bucket_bytes=bucket_megabytes * MB)
        self._publisher = ObjectStorePublisher(layout)
        self._bytes = sum(layout.bucket_bytes)
        self._source, self._target = np.ones(self._bytes, np.uint8), np.ones(self._bytes, np.uint8)

    def sizes(self) -> tuple[int, int]:
        return self._publisher.num_buffers, self._bytes

    def publish(self, version: int) -> Iterator[Any]:
        return self._publisher.publish(self._tensors, version=version)

    def plain_copy(self) -> float:
        began = time.perf_counter()
        np.copyto(self._target, self._source)
        return time.perf_counter() - began


@ray.remote(num_cpus=0)
class Reading:
    """Stands for a sampler."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._own: dict[str, torch.Tensor] = {}

    def verify(self, *returned: Any) -> int:
        *buffers, manifest = returned
        return sum(1 for _ in unpack(manifest, buffers))

    def verify_and_copy(self, *returned: Any) -> None:
        *buffers, manifest = returned
        for name, tensor in unpack(manifest, buffers):
            if name not in self._own:
                self._own[name] = torch.empty_like(tensor)
            self._own[name].copy_(tensor)

    def copy(self, *returned: Any) -> None:
        *buffers, _ = returned
        for number, buffer in enumerate(buffers):
            if str(number) not in self._own:
                self._own[str(number)] = torch.from_numpy(np.ones_like(buffer))
            np.copyto(self._own[str(number)].numpy(), buffer)


class Bed:
    """A publisher and its readers."""

    def __init__(self, megabytes: int, options: argparse.Namespace) -> None:
        self._publisher = Publishing.remote(megabytes, options.bucket_mb)
        self._readers = [Reading.remote() for _ in range(options.readers)]
        self.num_buffers, self.num_bytes = ray.get(self._publisher.sizes.remote())
        self._version = 0

    def round(self) -> dict[str, float]:
        """A plain copy, a version that is verified, one that is copied too, the readers' copies alone."""
        taken = {"plain": ray.get(self._publisher.plain_copy.remote())}
        for name, method in (("verified", "verify"), ("copied", "verify_and_copy")):
            began = time.perf_counter()
            published = self._publish()
            taken["publish"] = min(taken.get("publish", float("inf")), time.perf_counter() - began)
            self._read(method, published)
            taken[name] = time.perf_counter() - began
        began = time.perf_counter()
        self._read("copy", published)
        return taken | {"readers": time.perf_counter() - began}

    def end(self) -> None:
        for actor in (self._publisher, *self._readers):
            ray.kill(actor)

    def _publish(self) -> list[Any]:
        self._version += 1
        published = self._publisher.publish.options(num_returns=self.num_buffers + 1).remote(self._version)
        ray.wait(published, num_returns=len(published), fetch_local=False)
        return published

    def _read(self, method: str, published: list[Any]) -> None:
        ray.get([getattr(reader, method).remote(*published) for reader in self._readers])


def measure(megabytes: int, options: argparse.Namespace) -> dict[str, Any]:
    """One size: the line that is printed."""
    bed = Bed(megabytes, options)
    rounds = [bed.round() for _ in range(WARM_UP_ROUNDS + options.rounds)][WARM_UP_ROUNDS:]
    bed.end()
    best = {name: min(taken[name] for taken in rounds) for name in rounds[0]}

    def over_plain(name: str, copies: int) -> float:
        return round(copies * best["plain"] / best[name], 3)

    return {
        "case": "object_store",
        "bytes": bed.num_bytes,
        "buffers": bed.num_buffers,
        "readers": options.readers,
        "best_seconds": {name: round(value, 4) for name, value in best.items()},
        "median_seconds": {name: round(statistics.median(taken[name] for taken in rounds), 4) for name in best},
        "gb_per_second": {name: round(bed.num_bytes / 1e9 / value, 2) for name, value in best.items()},
        "version_over_plain": {name: over_plain(name, 1) for name in ("publish", "verified", "copied")},
        "delivered_over_plain": {name: over_plain(name, options.readers) for name in ("verified", "copied", "readers")},
        "rounds": options.rounds,
        "load_average": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
    }


@ray.remote(num_cpus=0)
class Sampling:
    """A real engine. It holds the requests; each `pause` loads a version in the middle of them."""

    def __init__(self, folder: str) -> None:
        from minillm_ray.engines.generation import EngineSettings, GenerationEngine

        settings = EngineSettings(
            model=folder,
            dtype="float32",
            max_model_tokens=STALL_PROMPT_TOKENS + STALL_TOKENS,
            tensor_parallel=1,
            device="cpu",
            vocabulary_size=32_000,
            seed=0,
        )
        self._engine = GenerationEngine(settings, temperature=1.0, stop_token_ids=[0])

    def pause(self, *returned: Any) -> dict[str, float]:
        *buffers, manifest = returned
        engine = self._engine
        for number in range(STALL_REQUESTS):
            tokens = [1 + (31 * number + 7 * k) % 31_000 for k in range(STALL_PROMPT_TOKENS)]
            engine.add(f"{manifest.version}-{number}", tokens, max_new_tokens=STALL_TOKENS, seed=number)
        steps = [self._step() for _ in range(STALL_TOKENS // 2)]
        tensors = unpack(manifest, buffers)
        began = time.perf_counter()
        engine.load_weights(tensors, manifest.version)
        stalled = time.perf_counter() - began
        after = self._step()
        while engine.has_unfinished():
            self._step()
        return {"step": statistics.median(steps[1:]), "stall": stalled, "step_after": after}

    def _step(self) -> float:
        began = time.perf_counter()
        self._engine.step()
        return time.perf_counter() - began


def measure_stall(options: argparse.Namespace) -> dict[str, Any]:
    """With a student of 5M parameters over 32,000 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32_000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True))
    publisher = ObjectStorePublisher(
        plan_layout(model.state_dict().items(), dtype=torch.float32, bucket_bytes=options.bucket_mb * MB)
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        environment = engine_environment(device="cpu", threads=options.threads, kv_cache_gib=1.0)
        engine = Sampling.options(runtime_env={"env_vars": environment}).remote(folder)
        taken = []
        for version in range(1, 2 + options.rounds):
            published = [ray.put(item) for item in publisher.publish(model.state_dict().items(), version=version)]
            taken.append(ray.get(engine.pause.remote(*published)))
        ray.kill(engine)
    counted = taken[1:]
    return {
        "case": "stall",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "requests": STALL_REQUESTS,
        "best_seconds": {name: round(min(each[name] for each in counted), 4) for name in counted[0]},
        "median_seconds": {name: round(statistics.median(each[name] for each in counted), 4) for name in counted[0]},
        "threads": options.threads,
        "rounds": options.rounds,
        "load_average": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["object_store", "stall", "all"], default="all")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 500], help="sizes of a version")
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--bucket-mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10, help="counted ones; each measures everything once")
    parser.add_argument("--threads", type=int, default=1, help="of the engine of the stall")
    options = parser.parse_args()
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), ("HF_HUB_OFFLINE", "1")):
        os.environ.setdefault(name, value)
    root = str(Path(__file__).resolve().parents[1])
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=max(4 * max(options.megabytes) * MB, 200 * MB),
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}},
        _node_ip_address="127.0.0.1",
    )
    if options.case != "stall":
        for megabytes in options.megabytes:
            print(json.dumps(measure(megabytes, options)), flush=True)
    if options.case != "object_store":
        print(json.dumps(measure_stall(options)), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
