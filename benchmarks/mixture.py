"""Teacher-mixed sampling: tokens/s of generation plus scoring, and what a sampled token costs each engine.

    python benchmarks/mixture.py --case random
    python benchmarks/mixture.py --case trained --student runs/quickstart/student \\
        --teacher runs/quickstart/phases/1-sft-teacher/best --prompts runs/quickstart/embedded/held_out.jsonl

One JSON line a case and scheme. `student` samples from the student alone and scores with one teacher pass;
`propose_verify` and `handoff` are the two exact schemes, through the actors that a run uses (one vLLM rollout worker,
one vLLM teacher); `lock_step` decodes both models side by side in transformers, batched and with key-value caches, one
token at a time, as the official code does, and needs no scoring pass. All draw 32 responses of 128 tokens, without an
end token, in turn, round after round, on one machine; seconds are the best of the rounds. An engine has one thread: its
operators are too short to divide, and both work at the same time. Lock step has all cores, and threads that spin before
they sleep.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import ray
import torch

from minillm_ray.data.encoding import encode_prompts
from minillm_ray.data.instructions import read_examples
from minillm_ray.data.sets import PromptSet
from minillm_ray.data.template import BARE
from minillm_ray.engines.environment import engine_environment, thread_environment
from minillm_ray.engines.generation import CPU_BLOCK_TOKENS, EngineSettings
from minillm_ray.mixture.sampler import MixtureSettings, SamplingCounts
from minillm_ray.pipeline.protocols import Task
from minillm_ray.rollout.actor import RolloutActor, SamplingSettings
from minillm_ray.rollout.client import RolloutClient
from minillm_ray.teacher.actor import TeacherActor
from minillm_ray.teacher.client import TeacherClient
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.replica import TeacherSpec
from minillm_ray.teacher.scorer import ScoreReport

NUM_PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 32, 32, 128
SEED = 5


@dataclass(frozen=True)
class Pair:
    """Two model folders with one vocabulary."""

    student: Path
    teacher: Path
    vocabulary_size: int


@dataclass(frozen=True)
class Cost:
    """Of one round. seconds: from the first request to the last payload."""

    seconds: float
    counts: list[SamplingCounts]
    reports: list[ScoreReport]


def random_pair(folder: Path) -> Pair:
    """5 and 17 million parameters, V = 32,000, nearly uniform distributions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, width, layers in (("student", 128, 4), ("teacher", 256, 9)):
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=32_000,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            tie_word_embeddings=True,
            max_position_embeddings=512,
            dtype="float32",
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder / name)
    return Pair(folder / "student", folder / "teacher", 32_000)


def given_pair(student: Path, teacher: Path) -> Pair:
    """Two folders that somebody trained."""
    size = json.loads((student / "config.json").read_text())["vocab_size"]
    return Pair(student, teacher, size)


def prompts_of(pair: Pair, file: Path | None) -> PromptSet:
    """The same prompts for every scheme, of one length: ids at random, or the file's first ones of its commonest."""
    if file is None:
        rows = np.random.default_rng(0).integers(3, pair.vocabulary_size, (NUM_PROMPTS, PROMPT_TOKENS)).astype(np.int32)
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(pair.student)
        encoded = encode_prompts(read_examples(file), tokenizer, BARE, max_prompt_tokens=96)
        common = Counter(len(prompt.token_ids) for prompt in encoded).most_common(1)[0][0]
        rows = np.stack([prompt.token_ids for prompt in encoded if len(prompt.token_ids) == common][:NUM_PROMPTS])
    offsets = np.arange(NUM_PROMPTS + 1, dtype=np.int64) * rows.shape[1]
    return PromptSet(rows.reshape(-1), offsets, ((),) * NUM_PROMPTS, ("",) * NUM_PROMPTS, 0, "")


class Engines:
    """One rollout worker for each scheme would triple the memory: the scheme is the worker's, so there are two."""

    def __init__(self, pair: Pair, prompts: PromptSet, *, alpha: float, threads: int, logs: Path) -> None:
        environment = engine_environment(device="cpu", threads=threads, kv_cache_gib=1.0)
        options = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}

        def settings(model: Path) -> EngineSettings:
            tokens = len(prompts.prompt(0)) + RESPONSE_TOKENS
            return EngineSettings(str(model), "float32", tokens, 1, "cpu", pair.vocabulary_size, SEED)

        def worker(scheme: str) -> RolloutClient:
            mixture = MixtureSettings(alpha, scheme, ())
            sampling = SamplingSettings(1.0, None, 1.0, (), RESPONSE_TOKENS, SEED, mixture)
            remote: Any = RolloutActor
            handle = remote.options(**options).remote(
                settings(pair.student), sampling, prompts, prompts, verdict_seconds=600, log_file=logs / f"{scheme}.log"
            )
            return RolloutClient(handle)

        self.workers = {scheme: worker(scheme) for scheme in ("propose_verify", "handoff")}
        spec = TeacherSpec(settings(pair.teacher), "vllm", "hidden", 1, Sampling(), 0.0)
        remote: Any = TeacherActor
        self.teacher = TeacherClient(remote.options(**options).remote(spec, log_file=logs / "teacher.log"))
        ray.get([client.ready() for client in [*self.workers.values(), self.teacher]], timeout=600)

    def draw(self, scheme: str, draw: int) -> Cost:
        """All prompts once; each response is scored when it is there."""
        mixed = scheme != "student"
        client = self.workers[scheme if mixed else "propose_verify"]
        began = time.perf_counter()
        pending = {}
        for index in range(NUM_PROMPTS):
            session = f"{scheme}-{draw}-{index}"
            task = Task("train", index, draw, mixed)
            teacher = self.teacher if mixed else None
            counts, trajectory = client.respond(task, teacher=teacher, session=session, together=None)
            pending[counts] = (trajectory, session)
        all_counts, scores, payloads = [], [], []
        while pending:
            [first], _ = ray.wait(list(pending), num_returns=1, timeout=600)
            trajectory, session = pending.pop(first)
            all_counts.append(first)
            report, payload = self.teacher.score(trajectory, session if mixed else None, exact=False)
            scores.append(report)
            payloads.append(payload)
        reports = ray.get(scores, timeout=600)
        seconds = time.perf_counter() - began
        return Cost(seconds, ray.get(all_counts), reports)


@ray.remote
class LockStep:
    """Both models in one process, one token of the mixture for every sequence at a time."""

    def __init__(self, pair: Pair, prompts: PromptSet, alpha: float, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        load = AutoModelForCausalLM.from_pretrained
        self._models = [load(folder, dtype=torch.float32).eval() for folder in (pair.student, pair.teacher)]
        self._prompts = torch.from_numpy(np.stack([prompts.prompt(i) for i in range(NUM_PROMPTS)])).long()
        self._alpha = alpha

    def draw(self, draw: int) -> float:
        """Seconds."""
        generator = torch.Generator().manual_seed(draw)
        began = time.perf_counter()
        with torch.inference_mode():
            caches: list[Any] = [None, None]
            tokens = self._prompts
            for _ in range(RESPONSE_TOKENS):
                rows = []
                for place, model in enumerate(self._models):
                    output = model(tokens, past_key_values=caches[place], use_cache=True, logits_to_keep=1)
                    caches[place] = output.past_key_values
                    rows.append(output.logits[:, -1].softmax(-1))
                mixture = self._alpha * rows[1] + (1 - self._alpha) * rows[0]
                tokens = torch.multinomial(mixture, 1, generator=generator)
        return time.perf_counter() - began


def line(case: str, scheme: str, costs: list[Cost], student_seconds: float, alpha: float) -> dict[str, Any]:
    """What is printed of a vLLM scheme; counts are over all rounds."""
    counts = [count for cost in costs for count in cost.counts]
    reports = [report for cost in costs for report in cost.reports]
    sampled = sum(count.num_tokens for count in counts)
    best = min(cost.seconds for cost in costs)
    corrected = sum(count.num_corrections for count in counts) / sampled
    # Prompts count too, where the engine read them: sessions find those of earlier rounds in its cache.
    teacher_tokens = sum(report.engine_tokens for report in reports) / sampled
    return {
        "case": case,
        "scheme": scheme,
        "alpha": alpha if scheme != "student" else 0.0,
        "tokens_per_second": round(NUM_PROMPTS * RESPONSE_TOKENS / best, 1),
        "best_seconds": round(best, 3),
        "share_of_student": round(student_seconds / best, 3),
        "correction_rate": round(corrected, 4),
        "teacher_tokens_per_token": round(teacher_tokens, 3),
        "one_plus_block_times_rate": round(1 + CPU_BLOCK_TOKENS * corrected, 3),
        "student_tokens_per_token": round(sum(c.num_student_tokens for c in counts) / sampled, 3),
        "requests_per_token": round(sum(c.num_student_requests + c.num_teacher_requests for c in counts) / sampled, 4),
    }


def measure(case: str, pair: Pair, prompts: PromptSet, options: argparse.Namespace, logs: Path) -> None:
    """All schemes in turn, round after round."""
    engines = Engines(pair, prompts, alpha=options.alpha, threads=options.threads, logs=logs)
    remote: Any = LockStep
    cores = os.cpu_count() or 1
    environment = thread_environment(cores, in_turn=True)
    lock_step = remote.options(num_cpus=0, runtime_env={"env_vars": environment}).remote(
        pair, prompts, options.alpha, cores
    )
    schemes: dict[str, Callable[[int], Any]] = {
        scheme: lambda draw, scheme=scheme: engines.draw(scheme, draw)
        for scheme in ("student", "propose_verify", "handoff")
    }
    schemes["lock_step"] = lambda draw: ray.get(lock_step.draw.remote(draw), timeout=600)
    costs: dict[str, list[Any]] = {scheme: [] for scheme in schemes}
    for draw in range(options.rounds + 1):
        for scheme, run in schemes.items():
            cost = run(draw)
            if draw:  # the first round warms up
                costs[scheme].append(cost)
    student_seconds = min(cost.seconds for cost in costs["student"])
    for scheme in ("student", "propose_verify", "handoff"):
        cost = line(case, scheme, costs[scheme], student_seconds, options.alpha)
        print(json.dumps(cost), flush=True)
    best = min(costs["lock_step"])
    fastest = min(cost.seconds for cost in costs["propose_verify"])
    print(
        json.dumps(
            {
                "case": case,
                "scheme": "lock_step",
                "alpha": options.alpha,
                "tokens_per_second": round(NUM_PROMPTS * RESPONSE_TOKENS / best, 1),
                "best_seconds": round(best, 3),
                "propose_verify_is_faster_by": round(best / fastest, 2),
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("random", "trained"), required=True)
    parser.add_argument("--student", type=Path, help="model folder, with --case trained")
    parser.add_argument("--teacher", type=Path, help="model folder, with --case trained")
    parser.add_argument("--prompts", type=Path, help="a JSONL file of instructions; random ids without it")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1, help="of each engine; lock step has all cores")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.case == "trained" and not (options.student and options.teacher):
        parser.error("--case trained needs --student and --teacher")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pair = random_pair(folder) if options.case == "random" else given_pair(options.student, options.teacher)
        prompts = prompts_of(pair, options.prompts)
        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        try:
            measure(options.case, pair, prompts, options, folder)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
