"""One optimizer step from micro-batches, whatever the loss: accumulate, clip once, apply.

Every loss given here is a sum over this micro-batch divided by one count taken over all ranks and micro-batches, so
the step does not depend on how the batch was cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from minillm_ray.learner.micro_batches import MicroBatch
from minillm_ray.learner.ranks import Rank
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.student import Student
from minillm_ray.objective import Head

Loss = Callable[[MicroBatch, Tensor, Head], Tensor]


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and gradient clipping, as in config section `learner`."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_gradient_norm: float


@dataclass(frozen=True)
class StepOutcome:
    """gradient_norm: before clipping, over all ranks. applied: False where it was not finite and the step skipped."""

    gradient_norm: float
    learning_rate: float
    applied: bool


class StudentTrainer:
    """A student, its optimizer and the number of steps taken. parameters: the trained ones, by name."""

    def __init__(
        self, student: Student, rank: Rank, *, optimizer: OptimizerSettings, schedule: LearningRateSchedule
    ) -> None:
        self.student = student
        self.rank = rank
        self._schedule = schedule
        self._max_gradient_norm = optimizer.max_gradient_norm
        # Taken once: a sharded model shows whole parameters in their place while a forward pass holds them.
        self.parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        trained = list(self.parameters.values())
        # Biases and normalisation weights have one dimension and are not decayed.
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": optimizer.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps)
        self.num_steps = 0

    def step(self, micro_batches: Sequence[MicroBatch], loss: Loss) -> StepOutcome:
        """One optimizer step on this rank's micro-batches. Every rank calls it, also one without any.

        A gradient that is not finite leaves weights and optimizer as they were; the step still counts.
        """
        learning_rate = self._schedule.at(self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        rounds = int(self.rank.max([float(len(micro_batches))])[0])
        for number in range(rounds):
            self._synchronise_gradients(number == rounds - 1)
            value = self.forward(micro_batches[number] if number < len(micro_batches) else None, loss)
            # A sharded model averages gradients over ranks; the loss is already a share of the global one.
            (value * self.rank.size).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_gradient_norm)
        gradient_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        applied = gradient_norm == gradient_norm and gradient_norm != float("inf")
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        return StepOutcome(gradient_norm, learning_rate, applied)

    def forward(self, batch: MicroBatch | None, loss: Loss) -> Tensor:
        """`loss` of one micro-batch. None stands in on a rank that has fewer than another: it adds nothing."""
        if batch is None:
            device = self.rank.device
            one = torch.zeros(1, dtype=torch.long, device=device)
            return self.student(one[None], one, lambda hidden, head: (hidden.sum() + head.weight.sum()) * 0.0)
        return self.student(batch.input_ids, batch.slots, lambda hidden, head: loss(batch, hidden, head))

    def _synchronise_gradients(self, last: bool) -> None:
        # A sharded model reduces gradients once a step, after the last micro-batch.
        if hasattr(self.student, "set_requires_gradient_sync"):
            self.student.set_requires_gradient_sync(last)
