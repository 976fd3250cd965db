"""`minillm-ray evaluate`: how good a model is on held-out prompts, and how far from its teacher, without a cluster.

    prompts -> responses of the model, then of the teacher (vLLM, one after the other, each in a process of its own)
            -> both models over all responses and the references (transformers) -> tables, results.json, responses

Every distribution is the one that is sampled from: at --temperature, over the tokenizer's vocabulary. n-gram blocking
changes which responses are drawn, not the distributions that are compared along them.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minillm_ray.config.errors import InputError
from minillm_ray.data import (
    Example,
    PromptSet,
    SupervisedSet,
    build_prompt_set,
    build_supervised_set,
    load_template,
    load_tokenizer,
    read_examples,
    require_same_vocabulary,
)
from minillm_ray.data.vocabulary import require_eos
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.model_folder import require_model_folder, require_new_folder
from minillm_ray.evaluation.report import print_tables, write_results
from minillm_ray.evaluation.responses import Response
from minillm_ray.evaluation.sampling_process import SamplingJob, sample_apart
from minillm_ray.evaluation.summary import Drawn, FileResult, ScoredResponse, summarise
from minillm_ray.evaluation.text_metrics import rouge_l
from minillm_ray.phases.inputs import require_room
from minillm_ray.phases.token_scores import PromptedSequence, ScoringSettings, TokenScorer
from minillm_ray.telemetry.console import RunConsole, StepNumbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEED_STEP = 10
"""The paper's seeds are 10, 20, 30, 40 and 50."""


@dataclass(frozen=True)
class EvaluateRequest:
    """What the command line asks for. seeds: how many; out: a new folder, or None to print only."""

    model: str
    data: tuple[str, ...]
    teacher: str | None
    seeds: int
    out: Path | None
    template: str
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float
    limit: int | None
    no_repeat_ngram: int | None
    batch_tokens: int


@dataclass(frozen=True)
class _File:
    """One data file, tokenised. references: prompt and first right answer of each row."""

    source: str
    prompts: PromptSet
    references: SupervisedSet

    def reference_sequences(self) -> list[PromptedSequence]:
        return [PromptedSequence(*self.references.example(row)) for row in range(len(self.references))]

    def sequences(self, responses: Sequence[Response]) -> list[PromptedSequence]:
        found = []
        for response in responses:
            prompt = self.prompts.prompt(response.row)
            found.append(PromptedSequence(np.concatenate([prompt, response.token_ids]), len(prompt)))
        return found


def evaluate(request: EvaluateRequest) -> None:
    """Print one table a file, and write the results if asked to.

    Raises InputError for a flag, model, data or folder that cannot be used, before anything is loaded or written.
    """
    _require_numbers(request)
    if request.out is not None:
        _require_writable(request.out)
    models = _checked_models(request)
    examples = {source: read_examples(source, limit=request.limit, need_output=True) for source in request.data}
    tokenizer = _common_tokenizer(models, request)
    files = [_tokenised(source, rows, tokenizer, request) for source, rows in examples.items()]
    seeds = [_SEED_STEP * (k + 1) for k in range(request.seeds)]
    device = _device()
    os.environ.update(
        engine_environment(device=device, threads=os.cpu_count() or 1, kv_cache_gib=1.0)
        | {"VLLM_LOGGING_LEVEL": "ERROR"}
    )
    responses = {
        role: sample_apart(_sampling_job(role, model, files, seeds, tokenizer, device, request))
        for role, model in models.items()
    }
    scorer = _scorer(models, len(tokenizer), device, request)
    results: list[FileResult] = []
    drawn: list[dict[str, Drawn]] = []
    for number, file in enumerate(files):
        with _scoring_progress(scorer, file, num_seeds=len(seeds)):
            drawn.append({role: _drawn(role, file, responses[role][number], scorer, tokenizer) for role in models})
            results.append(_summarised(file, drawn[-1], scorer))
    print_tables(results, seeds)
    if request.out is not None:
        settings = {name: value for name, value in asdict(request).items() if name not in ("data", "seeds", "out")}
        write_results(request.out, settings, results, seeds, drawn)
        print(f"results.json, results.md and responses.parquet are in {request.out}")


def _checked_models(request: EvaluateRequest) -> dict[str, str]:
    """`model` and perhaps `teacher` -> what `from_pretrained` takes."""
    models = {"model": require_model_folder(request.model, role="MODEL")}
    if request.teacher is not None:
        models["teacher"] = require_model_folder(request.teacher, role="--teacher")
    return models


def _common_tokenizer(models: dict[str, str], request: EvaluateRequest) -> "PreTrainedTokenizerBase":
    tokenizer = load_tokenizer(models["model"])
    if "teacher" in models:
        require_same_vocabulary(tokenizer, load_tokenizer(models["teacher"]))
    for role, model in models.items():
        num_tokens = request.max_prompt_tokens + request.max_response_tokens
        require_room(role, model, len(tokenizer), num_tokens, settings="--max-prompt-tokens + --max-response-tokens")
    return tokenizer


def _sampling_job(
    role: str,
    model: str,
    files: Sequence[_File],
    seeds: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
    device: str,
    request: EvaluateRequest,
) -> SamplingJob:
    return SamplingJob(
        name=role,
        settings=EngineSettings(
            model=model,
            dtype="float32" if device == "cpu" else "bfloat16",
            max_model_tokens=request.max_prompt_tokens + request.max_response_tokens,
            tensor_parallel=1,
            device=device,
            vocabulary_size=len(tokenizer),
            seed=0,
            arguments={"use_tqdm_on_load": False},
            no_repeat_ngram=request.no_repeat_ngram,
        ),
        temperature=request.temperature,
        end_token_id=require_eos(tokenizer),
        prompts=[[file.prompts.prompt(row) for row in range(len(file.prompts))] for file in files],
        seeds=seeds,
        max_new_tokens=request.max_response_tokens,
    )


def _drawn(
    role: str,
    file: _File,
    responses: Sequence[Response],
    scorer: TokenScorer,
    tokenizer: "PreTrainedTokenizerBase",
) -> Drawn:
    """Everything that is measured of one model's responses and predictions."""
    texts = [str(tokenizer.decode(response.token_ids, skip_special_tokens=True)) for response in responses]
    rouge = rouge_l(texts, [file.prompts.references[response.row] for response in responses])
    divergences = scorer.divergences(file.sequences(responses)) if scorer.has_teacher else [None] * len(responses)
    scored = [
        ScoredResponse(
            row=response.row,
            seed=response.seed,
            prompt=file.prompts.texts[response.row],
            text=text,
            rouge_l=score,
            num_tokens=len(response.token_ids),
            truncated=response.truncated,
            divergence=divergence,
        )
        for response, text, score, divergence in zip(responses, texts, rouge, divergences, strict=True)
    ]
    return Drawn(scored, scorer.predictions(file.reference_sequences(), of_teacher=role == "teacher"))


def _summarised(file: _File, drawn: dict[str, Drawn], scorer: TokenScorer) -> FileResult:
    return summarise(
        file=file.source,
        num_rows=len(file.prompts),
        num_prompts_cut=file.prompts.num_cut,
        num_references_truncated=file.references.num_truncated,
        model=drawn["model"],
        teacher=drawn.get("teacher"),
        reference_divergence=scorer.divergences(file.reference_sequences()) if scorer.has_teacher else None,
    )


@contextmanager
def _scoring_progress(scorer: TokenScorer, file: _File, *, num_seeds: int) -> Iterator[None]:
    """A line on stderr that counts the sequences which go through the models."""
    num_rows = len(file.prompts)
    # With a teacher: both models' responses and the references for the divergences, and two models' predictions.
    total = num_rows * (2 * num_seeds + 3) if scorer.has_teacher else num_rows
    console, done = RunConsole(), 0

    def advance(num_sequences: int) -> None:
        nonlocal done
        done += num_sequences
        console.step(done, StepNumbers())

    console.begin(f"scoring {file.source}", total_steps=total)
    scorer.on_scored = advance
    try:
        yield
    finally:
        console.end()


def _tokenised(
    source: str, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", request: EvaluateRequest
) -> _File:
    template = load_template(request.template, tokenizer)
    return _File(
        source=source,
        prompts=build_prompt_set(examples, tokenizer, template, request.max_prompt_tokens),
        references=build_supervised_set(
            examples,
            tokenizer,
            template,
            max_prompt_tokens=request.max_prompt_tokens,
            max_response_tokens=request.max_response_tokens,
        ),
    )


def _scorer(models: dict[str, str], vocabulary_size: int, device: str, request: EvaluateRequest) -> TokenScorer:
    import torch

    return TokenScorer(
        models["model"],
        models.get("teacher"),
        ScoringSettings(vocabulary_size, request.temperature, request.batch_tokens),
        device=torch.device("cuda" if device == "gpu" else "cpu"),
    )


def _require_numbers(request: EvaluateRequest) -> None:
    for flag, value, least in (
        ("--seeds", request.seeds, 1),
        ("--max-prompt-tokens", request.max_prompt_tokens, 1),
        ("--max-response-tokens", request.max_response_tokens, 1),
        ("--batch-tokens", request.batch_tokens, 1),
        ("--limit", request.limit, 1),
        ("--no-repeat-ngram", request.no_repeat_ngram, 2),
    ):
        if value is not None and value < least:
            raise InputError(f"{flag} is {value}; expected at least {least}")
    if not (math.isfinite(request.temperature) and request.temperature > 0):
        raise InputError(f"--temperature is {request.temperature}; expected a number above 0")
    twice = next((source for source in request.data if request.data.count(source) > 1), None)
    if twice is not None:
        raise InputError(f"--data {twice} is given twice; expected each file once")


def _require_writable(out: Path) -> None:
    """Hours of sampling are not lost to a folder that cannot be made."""
    require_new_folder(out)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {out}: {there} is no folder that can be written to; name another one")


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"
