"""Two small random models for the quick start, which needs no file from outside.

They differ in everything that must not matter: width, depth, head size, and how the head is stored (the teacher's is
its own tensor, the student's is its embedding), so that a run of the quick start goes through both paths.
"""

from pathlib import Path
from typing import Literal

from minillm_ray.config.errors import InputError
from minillm_ray.engines.model_folder import save_model_folder

Size = Literal["teacher", "student"]

_MAX_POSITION_EMBEDDINGS = 512
# width, width of the feed-forward part, layers, attention heads. Head sizes 64 and 32: vLLM has CPU kernels for both.
_SHAPES: dict[Size, tuple[int, int, int, int]] = {"teacher": (256, 688, 6, 4), "student": (128, 256, 2, 4)}


def write_embedded_model(size: Size, tokenizer_folder: Path, out: Path, seed: int) -> None:
    """Write a randomly initialised Llama model and its tokenizer to the folder `out`, which is replaced.

    size              "teacher": 4.7M parameters beside the vocabulary's, untied. "student": 0.3M, tied.
    tokenizer_folder  A tokenizer as save_pretrained writes it. Vocabulary size, EOS and padding ids come from it.
    seed              The same seed gives the same weights; the process' random state is left alone.

    Raises InputError if the tokenizer has no EOS token: a response could never end.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    if tokenizer.eos_token_id is None:
        raise InputError(f"{tokenizer_folder}: the tokenizer has no EOS token; set eos_token so that responses can end")
    hidden_size, intermediate_size, num_layers, num_heads = _SHAPES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=_MAX_POSITION_EMBEDDINGS,
        tie_word_embeddings=size == "student",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save_model_folder(model, tokenizer_folder, out)
