"""What is wrong with a model folder is said before anything is started, and a folder that is written is whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minillm_ray.config.errors import InputError
from minillm_ray.engines.model_folder import (
    ModelFacts,
    describe_model,
    require_model_folder,
    save_model_folder,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model_folder(make_model(), make_tokenizer(), folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def make_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    rest = {"num_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**(sizes | rest | changes)))


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_a_whole_folder_is_accepted_as_path_and_as_text(tiny: Path) -> None:
    assert require_model_folder(tiny, role="teacher") == str(tiny)
    assert require_model_folder(str(tiny), role="teacher") == str(tiny)


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"not json" + bytes(50))


def name_missing_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"a": '), r"config\.json: not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights; expected model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (cut_weights, r"model\.safetensors: \d+ bytes, but its header says \d+: the file is not whole"),
        (cut_header, r"model\.safetensors: 50 bytes, but its header alone needs"),
        (break_weights, "is not that of a safetensors file"),
        (name_missing_shards, "lacks 2 of the 2 weight files .* the first is model-1.safetensors"),
    ],
)
def test_what_is_missing_or_broken_is_named(spoil: Callable[[Path], None], says: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=says):
        require_model_folder(copy, role="teacher")


def test_a_folder_may_lack_a_tokenizer_where_none_is_needed(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert require_model_folder(copy, role="teacher", tokenizer=False) == str(copy)


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c", "../x", ""])
def test_what_is_neither_a_folder_nor_an_id_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"student: "):
        require_model_folder(name, role="student") if name else require_model_folder(tmp_path / "x", role="student")


def test_an_id_is_accepted_unless_the_hub_is_off_and_the_cache_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert require_model_folder("some-owner/some-model-1.5B", role="teacher") == "some-owner/some-model-1.5B"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        require_model_folder("some-owner/some-model-1.5B", role="teacher")


def test_a_file_instead_of_a_folder_names_the_converter(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError, match="convert-gguf"):
        require_model_folder(tmp_path / "model.gguf", role="teacher")


@pytest.mark.parametrize("tied", [False, True])
def test_facts_are_those_of_the_loaded_model(tied: bool, tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=tied)
    model.config.save_pretrained(tmp_path)
    facts = describe_model(tmp_path)
    assert facts == ModelFacts(
        num_parameters=model.num_parameters(),
        hidden_size=32,
        num_layers=2,
        vocab_size=64,
        max_position_embeddings=128,
        architecture="LlamaConfig",
        tied=tied,
    )


def test_facts_of_a_model_with_a_vision_part_are_those_of_its_text_part(tmp_path: Path) -> None:
    from transformers import Gemma3Config

    text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 16}
    Gemma3Config(text_config=text | {"num_attention_heads": 2, "num_key_value_heads": 1}).save_pretrained(tmp_path)
    facts = describe_model(tmp_path)
    assert (facts.vocab_size, facts.hidden_size, facts.num_layers) == (99, 32, 3)
    assert facts.num_parameters > 0


@pytest.mark.parametrize("content", ['{"model_type": "no-such-type"}', "{}"])
def test_a_configuration_that_transformers_does_not_know_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="its configuration cannot be read"):
        describe_model(tmp_path)


def test_a_model_that_predicts_no_next_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="expected a causal language model"):
        describe_model(tmp_path)


def test_a_saved_folder_replaces_the_old_one_and_gives_the_models_logits(copy: Path) -> None:
    model = make_model(num_hidden_layers=3, tie_word_embeddings=True).eval()
    save_model_folder(model, make_tokenizer(), copy)
    tokens = torch.arange(10)[None]
    loaded = AutoModelForCausalLM.from_pretrained(copy).eval()
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert AutoTokenizer.from_pretrained(copy)("a").input_ids == [1]
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]


def test_given_weights_are_written_in_place_of_the_models_own(copy: Path) -> None:
    """A tied head that comes as a tensor of its own, as gathering a sharded model gives it, is not stored twice."""
    model, trained = make_model(tie_word_embeddings=True).eval(), make_model(tie_word_embeddings=True).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    save_model_folder(model, copy, copy, weights={name: w.clone() for name, w in trained.state_dict().items()})
    tokens = torch.arange(10)[None]
    loaded = AutoModelForCausalLM.from_pretrained(copy).eval()
    assert torch.equal(loaded(tokens).logits, trained(tokens).logits)
    with safe_open(copy / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_a_saved_folder_can_be_read_by_whoever_can_read_its_configuration(copy: Path) -> None:
    assert (copy / "model.safetensors").stat().st_mode == (copy / "config.json").stat().st_mode


def test_a_save_that_fails_leaves_the_old_folder_alone(copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()

    def refuse(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        raise RuntimeError("not the same")

    with pytest.raises(RuntimeError, match="not the same"):
        save_model_folder(make_model(num_hidden_layers=1), copy, copy, check=refuse)
    assert (copy / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]
