"""The output head of a model: read from its folder, or taken from a loaded model."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from minillm_ray.config.errors import InputError
from minillm_ray.objective import Head

_HEAD_NAMES = (
    "lm_head.weight",
    "embed_out.weight",
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "model.decoder.embed_tokens.weight",
    "wte.weight",
)
_BIAS_NAMES = ("lm_head.bias", "embed_out.bias")


def load_head(model: str, *, vocabulary_size: int, dtype: torch.dtype, device: str = "cpu") -> Head:
    """The head of the model in `model`, alone: nothing else of its weights is read.

    Raises InputError if no file of the folder holds a tensor of a known name.
    """
    from transformers import AutoConfig

    folder = _local_folder(model)
    tensors = _tensor_files(folder)
    name = next((name for name in _HEAD_NAMES if name in tensors), None)
    if name is None:
        raise InputError(
            f"{model} holds no output head; expected a tensor named {', '.join(_HEAD_NAMES)} in its safetensors files"
        )
    weight = _read(tensors[name], name).to(device=device, dtype=dtype)
    bias_name = next((name for name in _BIAS_NAMES if name in tensors), None)
    bias = None if bias_name is None else _read(tensors[bias_name], bias_name).to(device=device, dtype=dtype)
    return _head(weight, bias, AutoConfig.from_pretrained(model), vocabulary_size)


def model_head(model: nn.Module, *, vocabulary_size: int) -> Head:
    """The head of a loaded causal model, sharing its tensors so that gradients reach them."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    return _head(output.weight, getattr(output, "bias", None), model.config, vocabulary_size)


@torch.no_grad()
def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """float32 [n, V] on the head's device, of hidden states [n, d]; rows that pad the head are left out.

    A GPU multiplies 16-bit inputs as they are and adds up in fp32, elsewhere both are cast: keep a CPU's head in fp32.
    """
    weight = head.weight[: head.vocab_size]
    hidden = hidden.to(device=weight.device, dtype=weight.dtype)
    if weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().t()
    if head.bias is not None:
        logits += head.bias[: head.vocab_size].float()
    if head.scale is not None:
        logits *= head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits


def _head(weight: Tensor, bias: Tensor | None, config: "object", vocabulary_size: int) -> Head:
    text = config.get_text_config()  # type: ignore[attr-defined]
    scale = getattr(text, "logit_scale", None)
    divisor = getattr(text, "logits_scaling", None)
    if divisor is not None:
        scale = 1.0 / divisor
    soft_cap = getattr(text, "final_logit_softcapping", None)
    return Head(weight=weight, bias=bias, scale=scale, soft_cap=soft_cap, vocab_size=vocabulary_size)


def _local_folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json"]))


def _tensor_files(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    names: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    return names


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
