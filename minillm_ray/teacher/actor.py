"""The Ray actor of a teacher replica: builds a TeacherScorer around a vLLM pooling engine and forwards to it."""

from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

from minillm_ray.engines.generation import EngineSettings
from minillm_ray.telemetry.actor_logs import redirect_output


@ray.remote
class TeacherActor:
    """Process boundary of one teacher replica."""

    def __init__(self, settings: EngineSettings, *, log_file: Path) -> None:
        redirect_output(log_file)
        import torch

        from minillm_ray.engines.pooling import PoolingEngine
        from minillm_ray.teacher.scorer import TeacherScorer

        self._scorer = TeacherScorer(PoolingEngine(settings), dtype=getattr(torch, settings.dtype))

    def ready(self) -> bool:
        """Answers once the engine is loaded."""
        return True

    def score(self, trajectories: list[ObjectRef], timeout_seconds: float) -> list[Any]:
        """How many bytes the payloads hold, then a payload for each trajectory: 1 + n returns.

        The references come in a list, so that the trajectories are fetched here and by nobody else.
        """
        payloads = self._scorer.score(ray.get(trajectories, timeout=timeout_seconds))
        return [sum(payload.data.nbytes for payload in payloads), *payloads]
