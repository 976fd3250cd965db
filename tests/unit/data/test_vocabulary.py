"""Two tokenizers are the same or the first difference is named."""

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.data.embedded_tokenizer import train_tokenizer
from minillm_ray.data.vocabulary import load_tokenizer, require_eos, require_same_vocabulary


@pytest.fixture
def twins(examples):
    return train_tokenizer(examples[:300], 300), train_tokenizer(examples[:300], 300)


def error_of(student, teacher) -> str:
    with pytest.raises(InputError) as caught:
        require_same_vocabulary(student, teacher)
    return str(caught.value)


def test_a_saved_tokenizer_loads_and_encodes_alike(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    require_same_vocabulary(loaded, tokenizer)
    text = "Repeat the words.\nnaïve 日本\n=>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.eos_token_id == tokenizer.eos_token_id == require_eos(loaded)


@pytest.mark.parametrize("path", ["/none/such", "./missing", "missing", "a/b/c"])
def test_a_missing_folder_is_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=rf"{path} does not exist \(looked for /.*\); expected a model folder.*Correct"
    ):
        load_tokenizer(path)


def test_a_file_is_not_a_folder(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"is a file; expected a model folder. Give the folder"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer.json": "{", "tokenizer_config.json": "{}"}, {"tokenizer.json": "{}"}]
)
def test_a_folder_without_a_sound_tokenizer_says_which_files_are_expected(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    assert f"no tokenizer can be loaded from {tmp_path}" in str(caught.value)
    assert "expected a folder with tokenizer.json and tokenizer_config.json" in str(caught.value)
    assert "Copy the tokenizer files" in str(caught.value)


def test_a_hub_id_that_cannot_be_reached_says_to_download(monkeypatch):
    from transformers import AutoTokenizer

    def unreachable(path):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(InputError, match=r"from owner/name \(OSError: We couldn't connect\).*give its local path"):
        load_tokenizer("owner/name")


def test_equal_vocabularies_pass(twins):
    require_same_vocabulary(*twins)


def test_the_first_differing_id_is_named_with_both_tokens(examples, twins):
    student, _ = twins
    teacher = train_tokenizer(examples[300:600], 300)
    ids = range(300)
    first = next(i for i in ids if student.convert_ids_to_tokens(i) != teacher.convert_ids_to_tokens(i))
    message = error_of(student, teacher)
    assert f"differ first at id {first}: " in message
    assert f"the student has {student.convert_ids_to_tokens(first)!r}" in message
    assert f"the teacher {teacher.convert_ids_to_tokens(first)!r}" in message
    assert "expected the same token at every id" in message
    assert "minillm-ray prune TEACHER OUT" in message


def test_a_token_that_only_one_has_is_a_difference(twins):
    student, teacher = twins
    teacher.add_tokens(["<extra>"])
    assert "at id 300: the student has nothing, the teacher '<extra>' (300 and 301 tokens)" in error_of(
        student, teacher
    )
    assert "at id 300: the student has '<extra>', the teacher nothing" in error_of(teacher, student)


def test_another_eos_is_named(twins):
    student, teacher = twins
    teacher.eos_token = "a"
    message = error_of(student, teacher)
    assert "share all ids but not EOS" in message
    assert f"the student ends with '<|endoftext|>' (id 0), the teacher with 'a' (id {teacher.eos_token_id})" in message
    assert "Set eos_token in the student's tokenizer_config.json" in message


def test_a_missing_eos_is_named(twins):
    student, teacher = twins
    student.eos_token = None
    assert "the student ends with nothing, the teacher with '<|endoftext|>'" in error_of(student, teacher)
    with pytest.raises(InputError, match="has no EOS token"):
        require_eos(student)


def test_both_tokenizers_are_named_by_where_they_came_from(twins, tmp_path):
    student, teacher = twins
    teacher.add_tokens(["<extra>"])
    teacher.save_pretrained(str(tmp_path))
    message = error_of(student, load_tokenizer(tmp_path))
    assert f"the student's tokenizer (made in memory) and the teacher's {tmp_path}" in message
