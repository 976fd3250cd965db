"""Low-rank adapters by peft: which weights are trained, and what a sampler gets of them, merged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """As in config section `learner.lora`."""

    rank: int
    alpha: float
    target_modules: list[str] | None


def with_adapters(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """The peft model around `model`: its own weights are frozen, adapters are trained. Raises ValueError by peft's
    message where no layer has such a name."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,  # type: ignore[arg-type]
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=settings.target_modules or "all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        ),
    )


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of the plain model that the peft model `model` computes, by Hugging Face name.

    Gathering a sharded tensor is a collective: every rank iterates to the end.
    """
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for name, tensor in base.state_dict().items():
        if ".lora_" in name:
            continue
        layer, _, parameter = name.replace(".base_layer", "").rpartition(".")
        weight = whole(tensor)
        if layer in adapted and parameter == "weight":
            module = adapted[layer]
            product = whole(module.lora_B[_ADAPTER].weight) @ whole(module.lora_A[_ADAPTER].weight)
            product = product.T if module.fan_in_fan_out else product
            weight = weight + module.scaling[_ADAPTER] * product
        yield f"{layer}.{parameter}", weight


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, detached."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
