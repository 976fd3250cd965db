"""Section `pipeline`: how the roles share the time, how long anyone waits, and what a death costs."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class PipelineSection(Section):
    """Rollout, teacher and learner, in turn or at the same time."""

    mode: Literal["sync", "async"] = "sync"
    """`sync`: the roles work in turn, and every response is drawn with the weights that it trains. `async`: they work
    at the same time."""
    max_staleness: int = Field(1, ge=1)
    """With mode async: weight versions, at most, between those that a response was begun with and those that it trains.
    A prompt waits rather than become staler; no response is thrown away. One version is one round."""
    startup_timeout_seconds: float = Field(600.0, gt=0)
    """Deadline for an actor to load its model and answer."""
    call_timeout_seconds: float = Field(1800.0, gt=0)
    """Deadline for any one piece of remote work, and for an engine to move on. Past it the replica counts as hung."""
    heartbeat_timeout_seconds: float = Field(60.0, gt=0)
    """A replica that does not answer for so long counts as hung and is replaced. Ray reports a death by itself."""
    max_restarts_per_hour: int = Field(5, ge=0)
    """How often one replica, or learner rank, is replaced within an hour; one loss more ends the run with status 1."""
    grace_seconds: float = Field(25.0, gt=0)
    """After SIGTERM: how long the round in progress may take to end before the run stops without a newer checkpoint.
    Below what the job's owner waits before SIGKILL: RAY_JOB_STOP_WAIT_TIME_S of a Ray job."""

    @property
    def staleness(self) -> int:
        """The bound in versions: 0 in sync mode."""
        return self.max_staleness if self.mode == "async" else 0
