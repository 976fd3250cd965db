"""Starting and stopping the actors of each role, with the resources and the environment that they need."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from minillm_ray.config.phases import MiniLLMPhase, SftPhase
from minillm_ray.config.placement import RolePlacement
from minillm_ray.config.rollout import RolloutSection
from minillm_ray.config.run import RunConfig
from minillm_ray.config.teacher import TeacherSection
from minillm_ray.engines.environment import engine_environment, thread_environment
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.learner.actor import DistillationActor, SupervisedActor
from minillm_ray.learner.client import DistillationGroup, SupervisedGroup
from minillm_ray.learner.lora import LoraSettings
from minillm_ray.learner.process import TrainingSpec
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.trainer import OptimizerSettings
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.cluster import ClusterFacts
from minillm_ray.phases.inputs import Inputs, max_sequence_tokens
from minillm_ray.rollout.actor import RolloutActor
from minillm_ray.rollout.client import RolloutPool
from minillm_ray.teacher.actor import TeacherActor
from minillm_ray.teacher.client import TeacherPool

Handle = Any


@dataclass(frozen=True)
class PromptReferences:
    """References to the PromptSets that samplers draw from."""

    train: Any
    held_out: Any


@dataclass(frozen=True)
class _Replicas:
    name: str
    placement: RolePlacement
    dtype: str
    tensor_parallel: int


@contextmanager
def rollout_pool(
    config: RunConfig, cluster: ClusterFacts, inputs: Inputs, *, model: str, prompts: PromptReferences
) -> Iterator[RolloutPool]:
    """Rollout actors that sample from the student `model`; they load while the caller goes on, until `ready`."""
    section = config.rollout
    replicas = _Replicas("rollout", cluster.plan["rollout"], section.dtype, section.tensor_parallel)
    with _samplers(config, cluster, inputs, model, prompts, replicas, section) as pool:
        yield pool


@contextmanager
def teacher_sampling_pool(
    config: RunConfig, cluster: ClusterFacts, inputs: Inputs, *, model: str, prompts: PromptReferences
) -> Iterator[RolloutPool]:
    """The same actors, sampling from the teacher on the resources of its scoring replicas, which must not run."""
    section = config.teacher
    replicas = _Replicas("teacher-samples", cluster.plan["teacher"], section.dtype, section.tensor_parallel)
    with _samplers(config, cluster, inputs, model, prompts, replicas, section) as pool:
        yield pool


@contextmanager
def teacher_pool(config: RunConfig, cluster: ClusterFacts, inputs: Inputs, *, model: str) -> Iterator[TeacherPool]:
    """Teacher actors that score with `model`."""
    section, placement = config.teacher, cluster.plan["teacher"]
    environment = engine_environment(device=cluster.device, threads=section.cpus, kv_cache_gib=section.kv_cache_gib)
    handles = [
        _remote(TeacherActor, placement, environment).remote(
            _engine_settings(config, cluster, inputs, model, section.dtype, section.tensor_parallel, number),
            log_file=_log_file(config, "teacher", number),
        )
        for number in range(section.replicas)
    ]
    with _stopped_at_the_end(handles):
        yield TeacherPool(handles, timeout_seconds=config.pipeline.call_timeout_seconds)


@contextmanager
def supervised_group(
    config: RunConfig,
    cluster: ClusterFacts,
    inputs: Inputs,
    phase: SftPhase,
    *,
    model: str,
    num_steps: int,
    train: Any,
    validation: Any,
) -> Iterator[SupervisedGroup]:
    """Learner ranks for supervised fine-tuning of `model`. train, validation: references to the SupervisedSets."""
    spec = _training_spec(config, cluster, inputs, phase, model=model, num_steps=num_steps)
    placement, size = cluster.plan["learner"], config.learner.ranks
    handles = [
        _remote(SupervisedActor, placement, thread_environment(config.learner.cpus)).remote(
            spec, rank, size, _log_file(config, f"sft-{phase.model}", rank), train, validation
        )
        for rank in range(size)
    ]
    with _stopped_at_the_end(handles):
        group = SupervisedGroup(handles, timeout_seconds=config.pipeline.call_timeout_seconds)
        yield group


@contextmanager
def distillation_group(
    config: RunConfig,
    cluster: ClusterFacts,
    inputs: Inputs,
    phase: MiniLLMPhase,
    *,
    student: str,
    teacher: str,
    settings: ObjectiveSettings,
) -> Iterator[DistillationGroup]:
    """Learner ranks for the MiniLLM phase."""
    spec = _training_spec(config, cluster, inputs, phase, model=student, num_steps=phase.steps)
    placement, size = cluster.plan["learner"], config.learner.ranks
    handles = [
        _remote(DistillationActor, placement, thread_environment(config.learner.cpus)).remote(
            spec,
            rank,
            size,
            _log_file(config, "learner", rank),
            settings,
            teacher,
            config.teacher.dtype,
            config.telemetry.samples_per_step,
            config.rollout.dtype,
            config.weights.bucket_mb * 1_000_000,
            config.run_dir / "bad_batches",
            config.telemetry.probe_every,
        )
        for rank in range(size)
    ]
    with _stopped_at_the_end(handles):
        group = DistillationGroup(handles, timeout_seconds=config.pipeline.call_timeout_seconds)
        yield group


@contextmanager
def _samplers(
    config: RunConfig,
    cluster: ClusterFacts,
    inputs: Inputs,
    model: str,
    prompts: PromptReferences,
    replicas: _Replicas,
    section: RolloutSection | TeacherSection,
) -> Iterator[RolloutPool]:
    environment = engine_environment(device=cluster.device, threads=section.cpus, kv_cache_gib=section.kv_cache_gib)
    handles = [
        _remote(RolloutActor, replicas.placement, environment).remote(
            _engine_settings(config, cluster, inputs, model, replicas.dtype, replicas.tensor_parallel, number),
            prompts.train,
            prompts.held_out,
            max_response_tokens=config.rollout.max_response_tokens,
            temperature=config.objective.temperature,
            stop_token_ids=[inputs.end_token_id],
            seed=config.seed,
            log_file=_log_file(config, replicas.name, number),
        )
        for number in range(replicas.placement.replicas)
    ]
    with _stopped_at_the_end(handles):
        yield RolloutPool(handles, timeout_seconds=config.pipeline.call_timeout_seconds)


def _engine_settings(
    config: RunConfig,
    cluster: ClusterFacts,
    inputs: Inputs,
    model: str,
    dtype: str,
    tensor_parallel: int,
    replica: int,
) -> EngineSettings:
    return EngineSettings(
        model=model,
        dtype=dtype,
        max_model_tokens=max_sequence_tokens(config),
        tensor_parallel=tensor_parallel,
        device=cluster.device,
        vocabulary_size=inputs.vocabulary_size,
        seed=config.seed + replica,
    )


def _training_spec(
    config: RunConfig,
    cluster: ClusterFacts,
    inputs: Inputs,
    phase: SftPhase | MiniLLMPhase,
    *,
    model: str,
    num_steps: int,
) -> TrainingSpec:
    learner = config.learner
    return TrainingSpec(
        model=model,
        vocabulary_size=inputs.vocabulary_size,
        compute_dtype=learner.dtype,
        gradient_checkpointing=learner.gradient_checkpointing,
        lora=None if learner.lora is None else LoraSettings(**learner.lora.model_dump()),
        optimizer=OptimizerSettings(
            betas=learner.betas,
            eps=learner.eps,
            weight_decay=learner.weight_decay,
            max_gradient_norm=learner.max_gradient_norm,
        ),
        schedule=LearningRateSchedule(
            peak=phase.learning_rate,
            warmup_steps=phase.warmup_steps,
            steps=num_steps,
            shape=learner.schedule,
            final=learner.final_learning_rate,
        ),
        micro_batch_tokens=learner.micro_batch_tokens,
        logits_memory_mb=config.objective.logits_memory_mb,
        device=cluster.device,
        threads=learner.cpus,
        seed=config.seed,
    )


def _remote(actor: Any, placement: RolePlacement, environment: dict[str, str]) -> Any:
    """The actor class with its resources and its environment; the hub's settings go with it to other nodes."""
    hub = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HOME") if name in os.environ}
    return actor.options(
        num_cpus=placement.reserved_cpus,
        num_gpus=placement.gpus,
        runtime_env={"env_vars": environment | hub},
    )


def _log_file(config: RunConfig, role: str, number: int) -> Path:
    return config.run_dir / "logs" / f"{role}-{number}.log"


@contextmanager
def _stopped_at_the_end(handles: Sequence[Handle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            ray.kill(handle)
