"""`minillm-ray generate`: one response of a model to each prompt of a file, without a cluster."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from minillm_ray.config.errors import InputError
from minillm_ray.data import build_prompt_set, load_template, load_tokenizer, read_examples
from minillm_ray.data.vocabulary import require_eos
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings, GeneratedSequence
from minillm_ray.engines.loop import EngineLoop
from minillm_ray.engines.model_folder import require_model_folder
from minillm_ray.rollout.worker import RolloutWorker, SamplingEngine, respond_to_all
from minillm_ray.telemetry.files import write_atomically


@dataclass(frozen=True)
class GenerateRequest:
    """What the command line asks for. out: a new .jsonl or .parquet file."""

    model: str
    data: str
    out: Path
    template: str
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float
    seed: int
    limit: int | None


def generate(request: GenerateRequest) -> None:
    """Answer every prompt and write {instruction, input, output, truncated} rows, all at once at the end.

    Raises InputError for a model, data or output file that cannot be used.
    """
    if request.out.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--out {request.out}: expected a file that ends in .jsonl or .parquet")
    if request.out.exists():
        raise InputError(f"--out {request.out} exists; give the name of a new file")
    for flag, value in (
        ("--max-prompt-tokens", request.max_prompt_tokens),
        ("--max-response-tokens", request.max_response_tokens),
        ("--temperature", request.temperature),
        ("--limit", 1 if request.limit is None else request.limit),
    ):
        if not value > 0:
            raise InputError(f"{flag} is {value}; expected more than 0")
    model = require_model_folder(request.model, role="MODEL")
    examples = read_examples(request.data, limit=request.limit)
    tokenizer = load_tokenizer(model)
    template = load_template(request.template, tokenizer)
    prompts = build_prompt_set(examples, tokenizer, template, request.max_prompt_tokens)
    device = _device()
    os.environ.update(
        engine_environment(device=device, threads=os.cpu_count() or 1, kv_cache_gib=1.0)
        | {"VLLM_LOGGING_LEVEL": "ERROR"}
    )
    from minillm_ray.engines.generation import GenerationEngine

    settings = EngineSettings(
        model=model,
        dtype="float32" if device == "cpu" else "bfloat16",
        max_model_tokens=request.max_prompt_tokens + request.max_response_tokens,
        tensor_parallel=1,
        device=device,
        vocabulary_size=len(tokenizer),
        seed=request.seed,
    )
    end_tokens = [require_eos(tokenizer)]
    loop: EngineLoop[SamplingEngine, GeneratedSequence] = EngineLoop(
        lambda: GenerationEngine(settings, temperature=request.temperature, stop_token_ids=end_tokens), name="student"
    )
    worker = RolloutWorker(
        loop, {"prompts": prompts}, max_response_tokens=request.max_response_tokens, seed=request.seed
    )
    trajectories = respond_to_all(worker, "prompts", range(len(prompts)), draw=0)
    rows = [
        {
            "instruction": example.instruction,
            "input": example.input,
            "output": tokenizer.decode(trajectory.response_ids, skip_special_tokens=True),
            "truncated": trajectory.truncated,
        }
        for example, trajectory in zip(examples, trajectories, strict=True)
    ]
    _write(rows, request.out)
    cut = f"{prompts.num_cut} of the prompts were cut to {request.max_prompt_tokens} tokens"
    print(f"{len(rows)} responses in {request.out}; {cut}")


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _write(rows: list[dict[str, object]], out: Path) -> None:
    if out.suffix == ".jsonl":
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import io

    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    write_atomically(out, buffer.getvalue())
