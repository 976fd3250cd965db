"""The Ray actor of a rollout replica: builds a RolloutWorker around a vLLM engine and forwards to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from minillm_ray.data.sets import PromptSet
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.telemetry.actor_logs import redirect_output
from minillm_ray.weights.buffers import WeightManifest


@ray.remote
class RolloutActor:
    """Process boundary of one rollout replica."""

    def __init__(
        self,
        settings: EngineSettings,
        train: PromptSet,
        held_out: PromptSet,
        *,
        max_response_tokens: int,
        temperature: float,
        stop_token_ids: Sequence[int],
        seed: int,
        log_file: Path,
    ) -> None:
        redirect_output(log_file)
        from minillm_ray.engines.generation import GenerationEngine
        from minillm_ray.rollout.worker import RolloutWorker

        self._worker = RolloutWorker(
            GenerationEngine(settings, temperature=temperature, stop_token_ids=stop_token_ids),
            {"train": train, "held_out": held_out},
            max_response_tokens=max_response_tokens,
            seed=seed,
        )

    def ready(self) -> bool:
        """Answers once the engine is loaded."""
        return True

    def generate(self, split: str, prompt_indices: Sequence[int], draw: int) -> list[Any]:
        """How many response tokens were drawn, then a trajectory for each prompt: 1 + n returns."""
        trajectories = self._worker.generate(split, prompt_indices, draw=draw)
        return [sum(len(trajectory.response_ids) for trajectory in trajectories), *trajectories]

    def pull(self, manifest: WeightManifest, *buffers: np.ndarray) -> int:
        """Load a published version, checked against its hashes. Returns the version."""
        from minillm_ray.weights.buffers import unpack

        self._worker.load_weights(unpack(manifest, buffers), manifest.version)
        return manifest.version
