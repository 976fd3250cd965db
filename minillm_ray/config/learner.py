"""Section `learner`: how the student's gradient is computed and applied. How long and how fast is a phase's."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class LoraSection(Section):
    """Low-rank adapters on the student's linear layers; the samplers get the merged weights."""

    rank: int = Field(ge=1)
    """Rank of each adapter."""
    alpha: float = Field(gt=0)
    """An adapter's product is scaled by alpha / rank."""
    target_modules: list[str] | None = None
    """Names of the layers that get one; null for every linear layer but the head."""


class LearnerSection(Section):
    """Ranks of one data-parallel group; every size below is global, so no result depends on the number of ranks."""

    ranks: int = Field(1, ge=1)
    """Ray actors that share each optimizer step."""
    cpus: int = Field(1, ge=1)
    """Threads of one rank where there is no GPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward passes. Weights, gradients and optimizer state are float32 either way."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Padded tokens in one forward and backward pass. Lower it when memory is short: the gradient stays the same."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(1e-6, ge=0)
    """AdamW's decoupled weight decay; biases and normalisation weights are exempt."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """The global gradient is clipped to this norm once an optimizer step."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: hold the phase's learning rate, or let it fall to `final_learning_rate` by the end."""
    final_learning_rate: float = Field(0.0, ge=0)
    """Where the cosine schedule ends."""
    lora: LoraSection | None = None
    """Train adapters alone; null trains every weight."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
