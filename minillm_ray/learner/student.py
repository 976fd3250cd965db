"""A causal language model with its body and its head apart, so that the objective never needs [N, V] logits.

The loss is computed inside `forward`, where a sharded model holds its head whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minillm_ray.engines.heads import model_head
from minillm_ray.objective import Head


class Student(nn.Module):
    """Wraps a transformers causal model. vocabulary_size: head rows above it are padding."""

    def __init__(self, model: nn.Module, *, vocabulary_size: int) -> None:
        super().__init__()
        self.model = model
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
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def load_student(
    path: str, *, vocabulary_size: int, dtype: torch.dtype, device: torch.device, gradient_checkpointing: bool
) -> Student:
    """The model in `path` for training, without dropout: the samplers have none either (reference: rule 7)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
    _disable_dropout(model)
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Student(model, vocabulary_size=vocabulary_size)


def _disable_dropout(model: nn.Module) -> None:
    """In modules and in the rates that attention layers keep as plain numbers; the configuration stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
