"""What a run reads is checked as one: the models, their tokenizers and the data have to fit each other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted.models import WORDS, save_tiny_folder

from minillm_ray.config import InputError, load_config
from minillm_ray.phases.inputs import Inputs, prepare_inputs

WriteRun = Callable[..., Path]


def prepare(path: Path, *overrides: str) -> Inputs:
    config = load_config(path, overrides)
    return prepare_inputs(config, embedded=config.run_dir / "embedded")


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        prepare(path, *overrides)
    return str(caught.value)


def test_good_inputs_are_what_the_configuration_names(run_folder: Path, write_run: WriteRun) -> None:
    """Paths of both models, ids of the tokenizer, rows of both sets; nothing is written."""
    before = sorted(run_folder.rglob("*"))
    inputs = prepare(write_run())
    assert (inputs.student, inputs.teacher) == (str(run_folder / "student"), str(run_folder / "teacher"))
    assert (inputs.vocabulary_size, inputs.end_token_id) == (len(WORDS), 0)
    assert [example.references for example in inputs.train] == [("a b",), ("b", "c")]
    assert len(inputs.prompts(inputs.held_out)) == len(inputs.pairs(inputs.held_out)) == 2
    assert sorted(run_folder.rglob("*")) == sorted([*before, run_folder / "run.yaml"])


def test_row_limits_apply_to_each_set_alone(run_folder: Path, write_run: WriteRun) -> None:
    """data.train_rows and data.held_out_rows; rows after the limit are not even looked at."""
    with (run_folder / "train.jsonl").open("a") as file:
        file.write("not JSON\n")
    inputs = prepare(write_run(), "data.train_rows=2", "data.held_out_rows=1")
    assert (len(inputs.train), len(inputs.held_out)) == (2, 1)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_with_fewer_rows_than_its_tokenizer_has_ids_is_refused(
    role: str, run_folder: Path, write_run: WriteRun
) -> None:
    """An id beyond the embedding would fail in the middle of a run."""
    shutil.rmtree(run_folder / role)
    save_tiny_folder(run_folder / role, vocab_size=len(WORDS) - 1)
    message = refusal(write_run())
    assert f"{role}: {run_folder / role} has 4 embedding rows, but its tokenizer has 5 ids" in message
    assert "resize its embedding" in message


def test_a_padded_embedding_is_fine(run_folder: Path, write_run: WriteRun) -> None:
    """More rows than ids is how many models are published."""
    shutil.rmtree(run_folder / "teacher")
    save_tiny_folder(run_folder / "teacher", vocab_size=64)
    assert prepare(write_run()).vocabulary_size == len(WORDS)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_too_short_for_prompt_and_response_is_refused(role: str, run_folder: Path, write_run: WriteRun) -> None:
    """32 + 16 tokens do not fit into 47 positions, and do fit into 48."""
    shutil.rmtree(run_folder / role)
    save_tiny_folder(run_folder / role, max_position_embeddings=47)
    message = refusal(write_run())
    assert f"{role}: {run_folder / role} takes 47 tokens" in message
    assert "or data.text_chunk_tokens, is 48. Lower these settings" in message
    prepare(write_run(), "rollout.max_response_tokens=15")


@pytest.mark.usefixtures("few_embedded_rows")
def test_the_quick_starts_own_data_and_models_are_made_in_the_run_folder(write_run: WriteRun, tmp_path: Path) -> None:
    """Both models, with the tokenizer of the data; a second call finds them as they are."""
    embedded = {"train": "embedded", "held_out": "embedded", "template": "bare", "max_prompt_tokens": 64}
    path = write_run(student={"model": "embedded:student"}, teacher={"model": "embedded:teacher"}, data=embedded)
    inputs = prepare(path)
    assert inputs.student == str(tmp_path / "run" / "embedded" / "student")
    assert inputs.teacher == str(tmp_path / "run" / "embedded" / "teacher")
    assert (len(inputs.train), len(inputs.held_out), inputs.vocabulary_size) == (6, 3, 300)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    prepare(path)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == written


@pytest.mark.usefixtures("run_folder")
def test_an_embedded_model_needs_the_embedded_data(write_run: WriteRun) -> None:
    """Its tokenizer is made from it."""
    message = refusal(write_run(student={"model": "embedded:student"}))
    assert "student.model is embedded:student, whose tokenizer is made from the embedded data" in message
    assert "set data.train=embedded" in message


@pytest.mark.usefixtures("run_folder")
def test_an_embedded_model_of_another_name_is_refused(write_run: WriteRun) -> None:
    """There are two."""
    message = refusal(write_run(teacher={"model": "embedded:giant"}))
    assert "teacher.model is embedded:giant; expected embedded:teacher, embedded:student, a folder or an id" in message


@pytest.mark.usefixtures("run_folder")
def test_a_chat_template_that_the_tokenizer_lacks_is_refused(write_run: WriteRun) -> None:
    """The tiny tokenizer has none."""
    assert "chat template" in refusal(write_run(), "data.template=chat")
