"""The whole of one run's configuration."""

from pathlib import Path

from pydantic import Field

from minillm_ray.config.base import Section
from minillm_ray.config.checkpoint import CheckpointSection
from minillm_ray.config.data import DataSection
from minillm_ray.config.evaluation import EvaluationSection
from minillm_ray.config.learner import LearnerSection
from minillm_ray.config.objective import ObjectiveSection
from minillm_ray.config.phases import Phase
from minillm_ray.config.pipeline import PipelineSection
from minillm_ray.config.ray import RaySection
from minillm_ray.config.rollout import RolloutSection
from minillm_ray.config.student import StudentSection
from minillm_ray.config.teacher import TeacherSection
from minillm_ray.config.telemetry import TelemetrySection
from minillm_ray.config.weights import WeightsSection


class RunConfig(Section):
    """One run. Relative paths start at the configuration file's folder; those given by -s, where the command runs."""

    run_dir: Path
    """Where everything that the run leaves behind goes. Actors write there too: shared storage on a cluster."""
    phases: list[Phase] = Field(min_length=1)
    """Each starts where the one before it ended."""
    seed: int = Field(10, ge=0, lt=2**31)
    """Of the order of prompts, of every sampled response, and of new models."""
    student: StudentSection
    teacher: TeacherSection
    data: DataSection
    rollout: RolloutSection = RolloutSection()
    objective: ObjectiveSection = ObjectiveSection()
    learner: LearnerSection = LearnerSection()
    pipeline: PipelineSection = PipelineSection()
    weights: WeightsSection = WeightsSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    telemetry: TelemetrySection = TelemetrySection()
    ray: RaySection = RaySection()
