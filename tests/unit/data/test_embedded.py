"""The embedded data is a function of its seed, its held-out prompts are new, and its folder is whole or absent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.data import embedded
from minillm_ray.data.embedded import FAMILIES, generate_examples, write_embedded
from minillm_ray.data.instructions import read_examples
from minillm_ray.data.vocabulary import load_tokenizer

ARGUMENTS = {"num_train": 60, "num_held_out": 20, "vocab_size": 300, "seed": 3}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prompts_of(examples):
    return [(example.instruction, example.input) for example in examples]


@pytest.fixture(scope="module")
def generated():
    return generate_examples(1800, 270, seed=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "data"
    write_embedded(folder, **ARGUMENTS)
    return folder


def test_no_held_out_prompt_is_a_training_prompt(generated):
    train, held_out = generated
    assert not set(prompts_of(train)) & set(prompts_of(held_out))


def test_held_out_prompts_stay_held_out_in_any_larger_set_of_any_seed(generated):
    _, held_out = generated
    train = generate_examples(3000, 0, seed=1)[0]
    assert not set(prompts_of(train)) & set(prompts_of(held_out))


def test_held_out_prompts_are_distinct(generated):
    _, held_out = generated
    assert len(set(prompts_of(held_out))) == len(held_out)


def test_a_larger_set_begins_with_the_smaller_one(generated):
    train, held_out = generated
    small_train, small_held_out = generate_examples(50, 18, seed=0)
    assert (small_train, small_held_out) == (train[:50], held_out[:18])


def test_another_seed_gives_other_examples(generated):
    assert generate_examples(50, 18, seed=1) != tuple(part[:n] for part, n in zip(generated, (50, 18), strict=True))


def test_too_many_held_out_prompts_name_the_most_there_are():
    with pytest.raises(InputError) as caught:
        generate_examples(0, 5000, seed=0)
    most = int(str(caught.value).rsplit(maxsplit=1)[1])
    assert "num_held_out is 5000" in str(caught.value)
    assert f"Set num_held_out to at most {most}" in str(caught.value)
    assert most > 400
    assert len(generate_examples(0, most, seed=0)[1]) == most


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_files_are_the_same_bytes_in_any_process(written, tmp_path, hash_seed):
    """The vocabulary too: a student and a teacher made on two machines must agree on every id."""
    code = f"from minillm_ray.data import write_embedded; write_embedded({str(tmp_path / 'data')!r}, **{ARGUMENTS})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed}, timeout=120
    )
    assert bytes_of(tmp_path / "data") == bytes_of(written)


def test_files_read_back_as_the_generated_examples(written):
    train, held_out = generate_examples(60, 20, seed=3)
    assert read_examples(written / "train.jsonl", need_output=True) == train
    assert read_examples(written / "held_out.jsonl", need_output=True) == held_out
    assert len(load_tokenizer(written / "tokenizer")) == 300


def test_nothing_is_left_beside_the_folder(written):
    assert list(written.parent.iterdir()) == [written]
    assert sorted(path.name for path in written.iterdir()) == [
        "embedded.json",
        "held_out.jsonl",
        "tokenizer",
        "train.jsonl",
    ]


def test_the_same_data_is_not_written_again(written, monkeypatch):
    monkeypatch.setattr(embedded, "_write_folder", None)
    paths = write_embedded(written, **ARGUMENTS)
    assert (paths.train, paths.held_out, paths.tokenizer) == (
        written / "train.jsonl",
        written / "held_out.jsonl",
        written / "tokenizer",
    )


def test_the_tokenizer_does_not_depend_on_how_many_examples_are_asked_for(written, tmp_path):
    paths = write_embedded(tmp_path / "data", **{**ARGUMENTS, "num_train": 10})
    assert bytes_of(paths.tokenizer) == bytes_of(written / "tokenizer")
    assert len(read_examples(paths.train)) == 10


@pytest.mark.parametrize("damage", ["other parameters", "other families", "a missing file"])
def test_embedded_data_that_is_not_what_was_asked_for_is_replaced(tmp_path, written, damage):
    folder = tmp_path / "data"
    paths = write_embedded(folder, **{**ARGUMENTS, "seed": 4 if damage == "other parameters" else 3})
    if damage == "other families":
        record = json.loads((folder / "embedded.json").read_text())
        (folder / "embedded.json").write_text(json.dumps({**record, "content": "of an older version"}))
    if damage == "a missing file":
        paths.held_out.unlink()
    write_embedded(folder, **ARGUMENTS)
    assert bytes_of(folder) == bytes_of(written)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError) as caught:
        write_embedded(tmp_path, **ARGUMENTS)
    assert f"{tmp_path} holds something other than embedded data" in str(caught.value)
    assert "expected a folder that is new, empty or written here before" in str(caught.value)
    assert "Choose another folder or remove it" in str(caught.value)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path, written):
    write_embedded(tmp_path, **ARGUMENTS)
    assert bytes_of(tmp_path) == bytes_of(written)


def test_a_failure_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    class Disk:
        def save_pretrained(self, path):
            raise OSError("no space left")

    monkeypatch.setattr(embedded, "train_tokenizer", lambda examples, vocab_size: Disk())
    with pytest.raises(OSError, match="no space left"):
        write_embedded(tmp_path / "data", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_families_come_in_turn(generated):
    train, _ = generated
    for start in (0, len(FAMILIES)):
        assert "Repeat" in train[start].instruction
        assert "Tell a story" in train[start + len(FAMILIES) - 1].instruction
