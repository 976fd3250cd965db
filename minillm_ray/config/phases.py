"""The phases of a run, in the order in which a configuration lists them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from minillm_ray.config.base import Section


class SftPhase(Section):
    """Supervised fine-tuning on the data's own responses; the checkpoint with the lowest validation loss is kept."""

    kind: Literal["sft"]
    model: Literal["teacher", "student"]
    """Which of the two is trained. Later phases start from the result."""
    epochs: int = Field(3, ge=1)
    """Passes over the training rows; the validation loss is taken after each."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step, over all ranks."""
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    train_rows: int | None = Field(None, ge=1)
    """Train on the first rows only; null for all that `data.train_rows` leaves."""


class MiniLLMPhase(Section):
    """On-policy reverse-KL distillation (arXiv 2306.08543). The paper: rollouts 256, minibatch 64, inner_epochs 4."""

    kind: Literal["minillm"]
    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    rollouts: int = Field(64, ge=1)
    """Responses that are sampled between two weight updates of the rollout workers, over all replicas."""
    minibatch: int = Field(64, ge=1)
    """Responses in one optimizer step, over all ranks."""
    inner_epochs: int = Field(1, ge=1)
    """Passes over the sampled responses. With 1, and rollouts equal to minibatch, training is strictly on-policy."""
    text_chunks: int | None = Field(None, ge=1)
    """Chunks of plain text in one optimizer step, where `data.plain_text` is given; null for one a response."""
    learning_rate: float = Field(5e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""

    @property
    def steps_a_round(self) -> int:
        """Optimizer steps between two weight updates of the rollout workers."""
        return self.rollouts // self.minibatch * self.inner_epochs

    @model_validator(mode="after")
    def sizes_divide(self) -> "MiniLLMPhase":
        if self.rollouts % self.minibatch:
            below = max(self.minibatch, self.rollouts - self.rollouts % self.minibatch)
            raise ValueError(
                f"rollouts={self.rollouts} is not a multiple of minibatch={self.minibatch}; set rollouts={below}"
            )
        if self.steps % self.steps_a_round:
            below = max(self.steps_a_round, self.steps - self.steps % self.steps_a_round)
            raise ValueError(
                f"steps={self.steps} is not a multiple of the {self.steps_a_round} optimizer steps of one round "
                f"(rollouts / minibatch * inner_epochs); set steps={below}"
            )
        return self


Phase = Annotated[SftPhase | MiniLLMPhase, Field(discriminator="kind")]
