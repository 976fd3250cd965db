"""The baselines on real Ray and vLLM: word-level distillation, the teacher's own answers, and the closing table."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from minillm_ray.config.load import load_config
from minillm_ray.phases.inputs import Inputs, prepare_inputs
from minillm_ray.telemetry.metrics import read_metrics

NUM_ROWS = 32
KD_RATIO = 0.25
RUN = {
    "phases": [
        {"kind": "kd", "kd_ratio": KD_RATIO, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3},
        {"kind": "seqkd", "epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
    ],
    "student": {"model": "embedded:student"},
    "teacher": {"model": "embedded:teacher"},
    "data": {
        "train": "embedded",
        "held_out": "embedded",
        "template": "bare",
        "max_prompt_tokens": 96,
        "train_rows": NUM_ROWS,
        "held_out_rows": 6,
    },
    "rollout": {"max_response_tokens": 16},
    "evaluation": {"prompts": 6, "batch_size": 4, "teacher_row": False},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run of both phases, begun with models that were never trained."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | {"run_dir": "run"}))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "minillm_ray", "train", str(folder / "run.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def inputs(run_dir: Path) -> Inputs:
    """The very pairs and prompts of the run."""
    return prepare_inputs(load_config(run_dir / "config.yaml"), embedded=run_dir / "embedded")


def model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def test_the_validation_loss_of_kd_is_that_of_whole_logits(run_dir: Path, inputs: Inputs) -> None:
    """From vLLM's hidden states and two heads in the run, from two dense softmaxes of transformers here."""
    student, teacher = model(run_dir / "phases" / "1-kd" / "best"), model(run_dir / "embedded" / "teacher")
    held_out = inputs.pairs(inputs.held_out)
    values = []
    for row in range(len(held_out)):
        token_ids, prompt_length = held_out.example(row)
        ids = torch.tensor(token_ids, dtype=torch.long)
        with torch.no_grad():
            log_q, log_p = (
                one(ids[None]).logits[0, prompt_length - 1 : -1].log_softmax(-1) for one in (student, teacher)
            )
        nll = -log_q.gather(1, ids[prompt_length:, None])[:, 0]
        values.append((1 - KD_RATIO) * nll + KD_RATIO * (log_p.exp() * (log_p - log_q)).sum(-1))
    name = "learner/supervised_loss_nats_per_token/validation"
    losses = [row[name] for row in read_metrics(run_dir / "metrics.jsonl") if row["phase"] == "1-kd" and name in row]
    assert len(losses) == 2
    assert min(losses) == pytest.approx(float(torch.cat(values).mean()), rel=1e-4)


def test_kd_brings_the_loss_down(run_dir: Path) -> None:
    """Eight steps from a random student."""
    name = "learner/supervised_loss_nats_per_token/train"
    losses = [row[name] for row in read_metrics(run_dir / "metrics.jsonl") if row["phase"] == "1-kd"]
    assert len(losses) == 2 * NUM_ROWS / 8
    assert losses[-1] < losses[0]


def test_the_teacher_answers_every_prompt_in_its_own_words(run_dir: Path, inputs: Inputs) -> None:
    """One row a prompt, in order; an untrained teacher never says what the data says."""
    rows = parquet.read_table(run_dir / "phases" / "2-seqkd" / "teacher_responses.parquet").to_pylist()
    assert [row["prompt_index"] for row in rows] == list(range(NUM_ROWS))
    gold = inputs.pairs(inputs.train)
    for row in rows:
        assert 1 <= len(row["response_ids"]) <= 16
        assert row["truncated"] == (row["response_ids"][-1] != inputs.end_token_id)
        token_ids, prompt_length = gold.example(row["prompt_index"])
        assert row["response_ids"] != token_ids[prompt_length:].tolist()
    assert len({tuple(row["response_ids"]) for row in rows}) > NUM_ROWS / 2


def test_seqkd_begins_where_kd_ended_and_its_student_is_the_result(run_dir: Path) -> None:
    """RUN/student is the last phase's; all three differ."""
    initial, after_kd, after_seqkd, result = (
        model(run_dir / folder).state_dict()["model.norm.weight"]
        for folder in ("embedded/student", "phases/1-kd/best", "phases/2-seqkd/best", "student")
    )
    assert not torch.equal(initial, after_kd)
    assert not torch.equal(after_kd, after_seqkd)
    assert torch.equal(after_seqkd, result)


def test_the_run_ends_with_the_students_row(run_dir: Path) -> None:
    """Exact reverse KL on its own responses, recorded with the last phase alone."""
    kd, seqkd = (
        json.loads((run_dir / "phases" / name / "finished.json").read_text())["scores"] for name in ("1-kd", "2-seqkd")
    )
    assert kd is None
    assert (seqkd["teacher"], seqkd["before"]) == (None, None)
    assert seqkd["after"]["reverse_kl"] > 0
    assert 1 <= seqkd["after"]["response_tokens"] <= 16
