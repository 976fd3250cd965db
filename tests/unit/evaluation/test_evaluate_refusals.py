"""`minillm-ray evaluate` refuses what it cannot do: one message, status 2, before anything is loaded or written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted.models import save_tiny_folder, tiny, word_tokenizer

from minillm_ray.cli import main
from minillm_ray.engines.model_folder import save_model_folder

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("own_process_state")


@pytest.fixture
def refused(run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs evaluate on the tiny student, with {names} of run_folder filled in; returns the one line of the refusal."""

    def sampled(job: object) -> None:
        raise AssertionError("an engine would have been started")

    monkeypatch.setattr("minillm_ray.phases.evaluate.sample_apart", sampled)

    def run(*arguments: str, model: str = "student", data: str = "train.jsonl") -> str:
        small = ["--template", "bare", "--max-prompt-tokens", "32", "--max-response-tokens", "16"]
        command = ["evaluate", f"{{folder}}/{model}", "--data", f"{{folder}}/{data}", *small, *arguments]
        before = sorted(run_folder.rglob("*"))
        status = main([argument.format(folder=run_folder) for argument in command])
        output = capsys.readouterr()
        assert (status, output.out) == (2, ""), output
        assert sorted(run_folder.rglob("*")) == before
        message = output.err.removesuffix("\n")
        assert "\n" not in message
        return message

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0"], "--seeds is 0; expected at least 1"),
        (["--limit", "0"], "--limit is 0; expected at least 1"),
        (["--max-prompt-tokens", "0"], "--max-prompt-tokens is 0; expected at least 1"),
        (["--max-response-tokens", "-3"], "--max-response-tokens is -3; expected at least 1"),
        (["--batch-tokens", "0"], "--batch-tokens is 0; expected at least 1"),
        (["--no-repeat-ngram", "1"], "--no-repeat-ngram is 1; expected at least 2"),
        (["--temperature", "0"], "--temperature is 0.0; expected a number above 0"),
        (["--temperature", "nan"], "--temperature is nan; expected a number above 0"),
        (["--temperature", "inf"], "--temperature is inf; expected a number above 0"),
        (["--data", "{folder}/train.jsonl"], "train.jsonl is given twice; expected each file once"),
        (["--data", "{folder}/none.jsonl"], "none.jsonl does not exist"),
        (["--teacher", "{folder}/none"], "--teacher: {folder}/none is not there"),
        (["--out", "{folder}/teacher"], "{folder}/teacher exists and is not empty; expected a new folder"),
        (["--out", "{folder}/train.jsonl/out"], "{folder}/train.jsonl is no folder that can be written to"),
        (["--template", "chat"], "has no chat template"),
        (["--max-response-tokens", "60"], "model: {folder}/student takes 64 tokens, but --max-prompt-tokens + "),
    ],
)
def test_bad_flags_are_named(arguments: list[str], says: str, refused: Refused, run_folder: Path) -> None:
    assert says.format(folder=run_folder) in refused(*arguments)


def test_a_missing_model_is_refused(refused: Refused) -> None:
    assert refused(model="none").startswith("MODEL: ")


@pytest.mark.parametrize("output", [[], ["", " "], "", None])
def test_a_row_without_a_right_answer_is_refused(output: object, refused: Refused, run_folder: Path) -> None:
    """An empty list of references above all: Rouge-L has no best of none."""
    row = {"instruction": "say a", "input": "", "output": output}
    (run_folder / "train.jsonl").write_text(f'{{"instruction": "say b", "output": "b"}}\n{json.dumps(row)}\n')
    message = refused()
    assert f"{run_folder / 'train.jsonl'}:2: no output (missing, empty or blank" in message
    assert "expected the right answer as text, or a list of them" in message


def test_a_model_without_an_end_token_is_refused(refused: Refused, run_folder: Path) -> None:
    """Its responses could never end."""
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    shutil.rmtree(run_folder / "student")
    save_model_folder(tiny("llama", vocab_size=5), tokenizer, run_folder / "student")
    assert "has no EOS token; expected one" in refused()


def test_a_teacher_of_another_vocabulary_is_refused(refused: Refused, run_folder: Path) -> None:
    """With the first id that differs."""
    shutil.rmtree(run_folder / "teacher")
    save_tiny_folder(run_folder / "teacher", words=("<eos>", "a", "x", "c", "say"))
    assert "differ first at id 2" in refused("--teacher", "{folder}/teacher")
