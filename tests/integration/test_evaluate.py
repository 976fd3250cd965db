"""`minillm-ray evaluate` on real vLLM engines: a model against itself, and n-gram blocking token by token."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from minillm_ray.data import write_embedded
from minillm_ray.engines.embedded_models import write_embedded_model
from minillm_ray.engines.environment import engine_environment
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.evaluation.sampling_process import SamplingJob, sample_apart

NUM_IDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded student, untrained, with its data."""
    folder = tmp_path_factory.mktemp("evaluate") / "embedded"
    write_embedded(folder, num_train=4, num_held_out=8, vocab_size=512, seed=0)
    write_embedded_model("student", folder / "tokenizer", folder / "student", 0)
    return folder


def test_a_model_that_is_its_own_teacher_has_no_divergence_and_the_same_figures(folder: Path, tmp_path: Path) -> None:
    """Two files, two seeds: every figure of the two columns agrees, both KLs are 0, and every response is there."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minillm_ray", "evaluate", "student", "--teacher", "student", "--out", str(out)]
    command += ["--data", "held_out.jsonl", "--data", "train.jsonl", "--limit", "3"]
    command += ["--template", "bare", "--seeds", "2", "--max-response-tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr

    files: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["files"]
    assert [file["file"] for file in files] == ["held_out.jsonl", "train.jsonl"]
    for file in files:
        assert f"{file['file']}: 3 prompts x 2 seeds" in done.stdout
        for name, metric in file["metrics"].items():
            if "_kl_" in name:
                assert metric["model"]["values"] == pytest.approx([0.0] * len(metric["model"]["values"]), abs=1e-5)
            else:
                assert metric["teacher"] == metric["model"]
    rows = parquet.read_table(out / "responses.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 3 * 2
    by_model: dict[str, list[str]] = {}
    for row in rows:
        assert 1 <= row["num_tokens"] <= 8
        by_model.setdefault(row["drawn_by"], []).append(row["response"])
    assert by_model["model"] == by_model["teacher"]
    assert len(set(by_model["model"])) > 6, "the seeds draw different responses"


def test_no_ngram_of_prompt_and_response_is_sampled_twice(folder: Path) -> None:
    """Sixty tokens out of twenty ids would repeat a bigram for certain."""
    os.environ |= engine_environment(device="cpu", threads=1, kv_cache_gib=1.0) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    settings = EngineSettings(
        model=str(folder / "student"),
        dtype="float32",
        max_model_tokens=96,
        tensor_parallel=1,
        device="cpu",
        vocabulary_size=NUM_IDS,
        seed=0,
        no_repeat_ngram=2,
    )
    prompts = [np.random.default_rng(k).permutation(NUM_IDS).astype(np.int32) for k in range(3)]
    (responses,) = sample_apart(
        SamplingJob(
            name="student",
            settings=settings,
            temperature=1.0,
            end_token_id=NUM_IDS,
            prompts=[prompts],
            seeds=[10],
            max_new_tokens=60,
        )
    )
    for prompt, response in zip(prompts, responses, strict=True):
        ids = [*prompt.tolist(), *response.token_ids.tolist()]
        assert len(ids) == NUM_IDS + 60
        assert len(set(pairwise(ids))) == len(ids) - 1
