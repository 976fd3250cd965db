"""Tiny random models of several architectures, built in memory, and the training parts around them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm_ray.engines.model_folder import save_model_folder
from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.sharding import ComputeDtype, shard
from minillm_ray.learner.student import Student
from minillm_ray.learner.trainer import OptimizerSettings, StudentTrainer
from minillm_ray.objective import Head

VOCABULARY = 48
WORDS = ("<eos>", "a", "b", "c", "say")


def tiny(architecture: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random causal model of transformers, without dropout: llama, mistral, gpt2, gemma2, granite, cohere or phi."""
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    names = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("Llama", {}),
        "mistral": ("Mistral", {"sliding_window": 40, "num_key_value_heads": 1}),
        "gpt2": ("GPT2", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        "gemma2": ("Gemma2", {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5}),
        "granite": ("Granite", {"logits_scaling": 4.0}),
        "cohere": ("Cohere", {"logit_scale": 0.25}),
        "phi": ("Phi", {}),
    }
    name, own = kinds[architecture]
    if architecture == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = getattr(transformers, f"{name}Config")(**(sizes | names | own | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            # Large enough for distributions that differ from token to token, biases and norms included.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.train()


def save_tiny_folder(
    folder: Path,
    *,
    architecture: str = "llama",
    hidden_size: int = 16,
    layers: int = 1,
    words: tuple[str, ...] = WORDS,
    **changes: Any,
) -> None:
    """A whole folder whose tokenizer knows `words`; the first of them ends a response."""
    sizes = {"vocab_size": len(words), "hidden_size": hidden_size, "num_hidden_layers": layers}
    save_model_folder(tiny(architecture, **(sizes | changes)), word_tokenizer(words), folder)


def word_tokenizer(words: tuple[str, ...] = WORDS) -> Any:
    """One id a word, in the order given; the first is the end token and stands for any unknown word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0])


def one_rank() -> Rank:
    return Rank(0, 1, torch.device("cpu"), in_group=False)


def make_trainer(
    model: Any,
    *,
    rank: Rank | None = None,
    vocabulary_size: int = VOCABULARY,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    max_gradient_norm: float = 1.0,
    eps: float = 1e-4,
    compute_dtype: ComputeDtype = "float32",
    has_adapters: bool = False,
) -> StudentTrainer:
    """A trainer around the model itself, sharded where the rank is in a group.

    A large eps keeps AdamW from magnifying rounding in tiny gradients.
    """
    rank = rank or one_rank()
    student = Student(model, vocabulary_size=vocabulary_size, has_adapters=has_adapters)
    if rank.in_group:
        shard(student, rank, compute_dtype=compute_dtype)
    return StudentTrainer(
        student,
        rank,
        optimizer=OptimizerSettings((0.9, 0.95), eps, weight_decay, max_gradient_norm),
        schedule=constant(learning_rate),
    )


def constant(learning_rate: float) -> LearningRateSchedule:
    return LearningRateSchedule(peak=learning_rate, warmup_steps=0, steps=1, shape="constant", final=0.0)


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Dense logits [N, V] as the head defines them: an independent reading of objective/head.py's formula."""
    raw = hidden @ head.weight.T
    if head.bias is not None:
        raw = raw + head.bias
    if head.scale is not None:
        raw = raw * head.scale
    if head.soft_cap is not None:
        raw = head.soft_cap * torch.tanh(raw / head.soft_cap)
    return raw[:, : head.vocab_size]
