"""`minillm-ray generate` on a real vLLM engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_ray.data import write_embedded
from minillm_ray.engines.embedded_models import write_embedded_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded student, untrained, with its data."""
    folder = tmp_path_factory.mktemp("generate") / "embedded"
    write_embedded(folder, num_train=40, num_held_out=8, vocab_size=512, seed=0)
    write_embedded_model("student", folder / "tokenizer", folder / "student", 0)
    return folder


def generate(folder: Path, out: Path) -> subprocess.CompletedProcess:
    model, data = folder / "student", folder / "held_out.jsonl"
    command = [sys.executable, "-m", "minillm_ray", "generate", str(model), "--data", str(data), "--out", str(out)]
    command += ["--template", "bare", "--max-response-tokens", "8", "--limit", "3"]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_every_prompt_gets_one_response_and_the_same_seed_the_same(folder: Path, tmp_path: Path) -> None:
    """Rows keep the prompt; two runs write equal files."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for out in (first, second):
        done = generate(folder, out)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    prompts = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()[:3]]
    assert [row["instruction"] for row in rows] == [prompt["instruction"] for prompt in prompts]
    assert all(set(row) == {"instruction", "input", "output", "truncated"} for row in rows)
    assert first.read_text() == second.read_text()


def test_an_output_file_that_exists_is_refused_and_kept(folder: Path, tmp_path: Path) -> None:
    """Exit status 2, one message, the file as it was."""
    out = tmp_path / "there.jsonl"
    out.write_text("mine\n")
    done = generate(folder, out)
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert out.read_text() == "mine\n"
