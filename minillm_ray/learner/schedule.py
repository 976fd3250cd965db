"""The learning rate at each optimizer step, as a function of the step alone: a resumed run needs no other state."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up from 0 over `warmup_steps`, then constant, or a half cosine that ends at `final` after `steps`."""

    peak: float
    warmup_steps: int
    steps: int
    shape: Literal["constant", "cosine"]
    final: float

    def at(self, step: int) -> float:
        """The learning rate of optimizer step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.final + (self.peak - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))
