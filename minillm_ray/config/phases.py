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


class KdPhase(Section):
    """Word-level distillation on the data's own responses; the checkpoint with the lowest validation loss is kept."""

    kind: Literal["kd"]
    kd_ratio: float = Field(0.5, gt=0.0, le=1.0)
    """Share of forward KL(p || q) at each response token; the rest is cross-entropy. Without any of it: `sft`."""
    epochs: int = Field(3, ge=1)
    """Passes over the training rows; the validation loss is taken after each."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step, over all ranks."""
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    train_rows: int | None = Field(None, ge=1)
    """Train on the first rows only; null for all that `data.train_rows` leaves."""


class SeqKdPhase(Section):
    """The teacher answers every training prompt once, and the student is fine-tuned on its answers.

    The checkpoint with the lowest validation loss is kept; validation stays with the data's own responses.
    """

    kind: Literal["seqkd"]
    temperature: float = Field(1.0, gt=0.0)
    """Of the teacher's answers. Low ones give its most likely answers, with less variety."""
    epochs: int = Field(3, ge=1)
    """Passes over the teacher's answers; the validation loss is taken after each."""
    batch_size: int = Field(32, ge=1)
    """Rows in one optimizer step, over all ranks."""
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    train_rows: int | None = Field(None, ge=1)
    """Answer and train on the first prompts only; null for all that `data.train_rows` leaves."""


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
    evaluate_every: int | None = Field(None, ge=1)
    """Optimizer steps between two measurements on the held-out prompts, as in the closing table: a curve of each of its
    numbers, while training waits. null measures before and after only."""
    train_rows: int | None = Field(None, ge=1)
    """Sample responses to the first prompts only; null for all that `data.train_rows` leaves."""
    select: Literal["last", "rouge_l"] = "last"
    """Which student is the result. `rouge_l`, as in the paper: of those measured, the one with the highest Rouge-L.
    `last`: the one that was optimized longest; it costs no measurement, and picks nothing by the noise of one."""

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
        if self.evaluate_every is not None and self.evaluate_every % self.steps_a_round:
            above = self.evaluate_every + -self.evaluate_every % self.steps_a_round
            raise ValueError(
                f"evaluate_every={self.evaluate_every} is not a multiple of the {self.steps_a_round} optimizer steps "
                f"of one round (rollouts / minibatch * inner_epochs); set evaluate_every={above}"
            )
        if self.select == "rouge_l" and self.evaluate_every is None:
            raise ValueError(
                "select=rouge_l picks among the students that were measured, and evaluate_every is null; set "
                "evaluate_every, or select=last"
            )
        return self


SupervisedPhase = SftPhase | KdPhase | SeqKdPhase
"""On pairs of prompt and response, epoch after epoch."""

Phase = Annotated[SftPhase | KdPhase | SeqKdPhase | MiniLLMPhase, Field(discriminator="kind")]


def phase_name(number: int, phase: Phase) -> str:
    """Of phase `number`, from 1: in metrics and events, and of its folder below RUN/phases."""
    return f"{number}-sft-{phase.model}" if isinstance(phase, SftPhase) else f"{number}-{phase.kind}"


def trains_student(phase: Phase) -> bool:
    """False for the teacher's own fine-tuning."""
    return not (isinstance(phase, SftPhase) and phase.model == "teacher")
