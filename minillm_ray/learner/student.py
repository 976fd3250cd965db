"""A causal language model with its body and its head apart, so that the objective never needs [N, V] logits.

The loss is computed inside `forward`, where a sharded model holds its head whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minillm_ray.engines.heads import model_head
from minillm_ray.learner.lora import LoraSettings, merged_weights, whole, with_adapters
from minillm_ray.objective import Head


class Student(nn.Module):
    """Wraps a transformers causal model. vocabulary_size: head rows above it are padding."""

    def __init__(self, model: nn.Module, *, vocabulary_size: int, has_adapters: bool = False) -> None:
        super().__init__()
        self.model = model
        self.has_adapters = has_adapters
        self.vocabulary_size = vocabulary_size

    def forward(self, input_ids: Tensor, slots: Tensor, compute: Callable[[Tensor, Head], Any]) -> Any:
        """`compute(hidden [N, d_s], head)` of the final hidden states at `slots` of input_ids [B, L]."""
        body = self.model.get_decoder()  # type: ignore[operator]
        hidden = body(input_ids=input_ids, use_cache=False).last_hidden_state
        packed = hidden.reshape(-1, hidden.shape[-1])[slots]
        return compute(packed, model_head(self.model, vocabulary_size=self.vocabulary_size))

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a sampler needs, whole, by Hugging Face name; a tied head comes under both its names.

        Gathering a sharded tensor is a collective: every rank iterates to the end.
        """
        if self.has_adapters:
            yield from merged_weights(self.model)
            return
        for name, tensor in self.model.state_dict().items():
            yield name, whole(tensor)

    @property
    def plain_model(self) -> nn.Module:
        """The transformers model itself, without the adapters' wrapper."""
        return self.model.get_base_model() if self.has_adapters else self.model  # type: ignore[operator]


def load_student(
    path: str,
    *,
    vocabulary_size: int,
    dtype: torch.dtype,
    device: torch.device,
    gradient_checkpointing: bool,
    lora: LoraSettings | None = None,
) -> Student:
    """The model in `path` for training, without dropout: the samplers have none either (reference: rule 7)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
    _disable_dropout(model)
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        model = with_adapters(model, lora)
    return Student(model, vocabulary_size=vocabulary_size, has_adapters=lora is not None)


def _disable_dropout(model: nn.Module) -> None:
    """In modules and in the rates that attention layers keep as plain numbers; the configuration stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
