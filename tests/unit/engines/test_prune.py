"""A pruned model is its teacher with some layers skipped, for any architecture, and says so in its configuration."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from minillm_ray.config.errors import InputError
from minillm_ray.engines.prune import evenly_spaced, find_layers, prune_layers

WIDTHS = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
IDS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**WIDTHS, **HEADS, **IDS, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=6, n_head=2, n_positions=64, **IDS),
    # Two kinds of layers, told apart by a list in the configuration.
    "qwen2": lambda: Qwen2Config(
        **WIDTHS, **HEADS, **IDS, use_sliding_window=True, sliding_window=4, max_window_layers=3
    ),
    "gemma3": lambda: Gemma3TextConfig(**WIDTHS, **HEADS, **IDS, head_dim=16, sliding_window=4),
}


def write_teacher(config: PretrainedConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {"<eos>": 0, "<pad>": 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_kept_layers_are_evenly_spaced_with_the_first_and_the_last(sizes: tuple[int, int]) -> None:
    num_layers, keep = sizes
    kept = evenly_spaced(num_layers, keep)
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert (len(kept), kept[0], kept[-1]) == (keep, 0, num_layers - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_pruned_model_is_the_teacher_with_the_other_layers_skipped(architecture: str, tmp_path: Path) -> None:
    write_teacher(CONFIGS[architecture](), tmp_path / "teacher")
    kept = prune_layers(tmp_path / "teacher", tmp_path / "student", 3)
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", attn_implementation="eager").eval()
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", attn_implementation="eager").eval()
    layers = teacher.get_submodule(find_layers(teacher, 6))
    for index in range(6):
        if index not in kept:
            layers[index].forward = lambda hidden, *rest, **named: hidden
    tokens = torch.randint(0, 64, (2, 12))
    with torch.no_grad():
        expected = teacher(tokens, use_cache=False).logits
        torch.testing.assert_close(student(tokens, use_cache=False).logits, expected)
    assert student.config.num_hidden_layers == 3


def test_lists_with_one_entry_a_layer_are_cut_to_the_kept_layers(tmp_path: Path) -> None:
    write_teacher(CONFIGS["qwen2"](), tmp_path / "teacher")
    kept = prune_layers(tmp_path / "teacher", tmp_path / "student", 3)
    teacher, student = (AutoConfig.from_pretrained(tmp_path / name) for name in ("teacher", "student"))
    assert student.layer_types == [teacher.layer_types[layer] for layer in kept]
    assert student.layer_types != teacher.layer_types[:3]


def test_a_cached_generation_of_the_student_needs_no_hole_in_its_cache(tmp_path: Path) -> None:
    """Layers are numbered anew: with the teacher's numbers the cache would be asked for layers it does not have."""
    write_teacher(CONFIGS["llama"](), tmp_path / "teacher")
    prune_layers(tmp_path / "teacher", tmp_path / "student", 2)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokens = torch.tensor([[5, 6, 7]])
    cached = student.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=None)
    whole = student.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=False)
    assert cached.tolist() == whole.tolist()


def test_dtype_and_tokenizer_files_are_the_teachers(tmp_path: Path) -> None:
    write_teacher(CONFIGS["llama"](), tmp_path / "teacher", torch.bfloat16)
    prune_layers(tmp_path / "teacher", tmp_path / "student", 2)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto").dtype == torch.bfloat16
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "student" / name).read_bytes() == (tmp_path / "teacher" / name).read_bytes()


@pytest.mark.parametrize("keep_layers", [-1, 0, 1, 7])
def test_a_number_of_layers_out_of_range_is_refused_with_the_range(keep_layers: int, tmp_path: Path) -> None:
    write_teacher(CONFIGS["llama"](), tmp_path / "teacher")
    with pytest.raises(InputError, match=rf"--keep-layers {keep_layers}: .* has 6 layers; expected 2 to 6"):
        prune_layers(tmp_path / "teacher", tmp_path / "student", keep_layers)
    assert not (tmp_path / "student").exists()


def test_an_output_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    write_teacher(CONFIGS["llama"](), tmp_path / "teacher")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        prune_layers(tmp_path / "teacher", tmp_path / "student", 3)
    assert [entry.name for entry in (tmp_path / "student").iterdir()] == ["mine"]


def test_a_model_without_one_list_of_layers_cannot_be_pruned() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    with pytest.raises(InputError, match="has 0 lists of 5 modules"):
        find_layers(model, 5)
