"""The quick start's two models: small, repeatable, and different where a difference must not matter."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from minillm_ray.config.errors import InputError
from minillm_ray.engines.embedded_models import Size, write_embedded_model
from minillm_ray.engines.model_folder import describe_model, require_model_folder

SIZES: list[Size] = ["teacher", "student"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer", eos="<eos>")


def write_tokenizer(folder: Path, eos: str | None) -> Path:
    words = {f"w{i}": i for i in range(500)} | {"<pad>": 500, "<eos>": 501}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_vocabulary_and_special_ids_are_the_tokenizers(size: Size, tokenizer: Path, tmp_path: Path) -> None:
    write_embedded_model(size, tokenizer, tmp_path / "model", seed=0)
    require_model_folder(tmp_path / "model", role=size)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    assert describe_model(tmp_path / "model").vocab_size == 502
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (501, 500, None)


def test_the_teacher_is_ten_times_the_student_and_only_the_student_is_tied(tokenizer: Path, tmp_path: Path) -> None:
    for size in SIZES:
        write_embedded_model(size, tokenizer, tmp_path / size, seed=0)
    teacher, student = (describe_model(tmp_path / size) for size in SIZES)
    assert teacher.num_parameters > 10 * student.num_parameters
    assert (teacher.tied, student.tied) == (False, True)


def test_a_seed_gives_the_same_weights_and_leaves_the_random_state_alone(tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_embedded_model("student", tokenizer, tmp_path / name, seed=seed)
    assert torch.equal(torch.rand(3), expected)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", eos=None)
    with pytest.raises(InputError, match="no EOS token"):
        write_embedded_model("student", folder, tmp_path / "model", seed=0)
    assert not (tmp_path / "model").exists()
