"""Section `pipeline`: how the roles take turns, and how long anyone waits."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class PipelineSection(Section):
    """Roles work in turn: rollout, teacher, learner, weights."""

    mode: Literal["sync"] = "sync"
    """`sync`: every response is drawn with the weights that it trains."""
    startup_timeout_seconds: float = Field(600.0, gt=0)
    """Deadline for an actor to load its model and answer."""
    call_timeout_seconds: float = Field(1800.0, gt=0)
    """Deadline for any one piece of remote work. Past it the run ends with status 1 and names the role."""
