"""What the actors of each role are built from, given a run's configuration and inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm_ray.config.phases import Phase
from minillm_ray.config.rollout import RolloutSection
from minillm_ray.config.run import RunConfig
from minillm_ray.config.teacher import TeacherSection
from minillm_ray.engines.environment import engine_environment, thread_environment
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.weight_transfer import BACKEND
from minillm_ray.learner.actor import DistillationActor, SupervisedActor
from minillm_ray.learner.client import RankClient, SupervisedGroup
from minillm_ray.learner.lora import LoraSettings
from minillm_ray.learner.process import TrainingSpec
from minillm_ray.learner.publishing import PublishingSpec
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.learner.trainer import OptimizerSettings
from minillm_ray.mixture.sampler import MixtureSettings
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.cluster import ClusterFacts
from minillm_ray.phases.inputs import Inputs, max_sequence_tokens
from minillm_ray.phases.launchers import ActorLauncher, as_actor
from minillm_ray.pipeline.replicas import REMINDER_SECONDS
from minillm_ray.remote import get, ready_among
from minillm_ray.rollout.actor import RolloutActor, SamplingSettings
from minillm_ray.rollout.client import RolloutClient
from minillm_ray.teacher.actor import TeacherActor
from minillm_ray.teacher.client import TeacherClient
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.replica import TeacherSpec


@dataclass(frozen=True)
class PromptReferences:
    """References to the PromptSets that samplers draw from."""

    train: Any
    held_out: Any


@dataclass(frozen=True)
class RunParts:
    """What every role needs to know of the run."""

    config: RunConfig
    cluster: ClusterFacts
    inputs: Inputs


def rollout_launcher(
    parts: RunParts, *, model: str, prompts: PromptReferences, settings: ObjectiveSettings
) -> ActorLauncher:
    """Rollout replicas that sample from the student `model`, mixed with the teacher where alpha is above 0."""
    section = parts.config.rollout
    mixture = None
    if settings.alpha > 0:
        mixture = MixtureSettings(
            alpha=settings.alpha,
            scheme=section.mix_scheme,
            stop_token_ids=(parts.inputs.end_token_id,),
        )
    return _sampler_launcher(
        parts,
        "rollout",
        section,
        model=model,
        prompts=prompts,
        mixture=mixture,
        temperature=parts.config.objective.temperature,
    )


def teacher_sampler_launcher(
    parts: RunParts, *, model: str, prompts: PromptReferences, temperature: float
) -> ActorLauncher:
    """The same actors, sampling from the teacher on the resources of its scoring replicas, which must not run."""
    return _sampler_launcher(
        parts, "teacher", parts.config.teacher, model=model, prompts=prompts, mixture=None, temperature=temperature
    )


def teacher_launcher(parts: RunParts, *, model: str) -> ActorLauncher:
    """Teacher replicas that score with `model`."""
    config, section = parts.config, parts.config.teacher
    environment = engine_environment(
        device=parts.cluster.device, threads=section.cpus, kv_cache_gib=section.kv_cache_gib
    )

    def create(options: dict[str, Any], number: int) -> TeacherClient:
        spec = TeacherSpec(
            settings=_engine_settings(parts, section, model, number),
            engine=section.engine,
            payload=section.payload,
            payload_top_k=section.payload_top_k,
            sampling=Sampling(config.objective.temperature, config.rollout.top_k or 0, config.rollout.top_p),
            probe_max_gb=section.probe_max_gb,
        )
        handle = as_actor(TeacherActor).options(**options).remote(spec, log_file=_log_file(config, "teacher", number))
        return TeacherClient(handle)

    return ActorLauncher(parts.cluster.plan["teacher"], environment, create)


def learner_launcher(
    parts: RunParts,
    *,
    student: str,
    teacher: str,
    settings: ObjectiveSettings,
    schedule: LearningRateSchedule,
    in_turn: bool,
) -> ActorLauncher:
    """Learner ranks that hold the teacher's head beside the student. in_turn: no other role works while they do."""
    config = parts.config
    spec = _training_spec(parts, model=student, schedule=schedule)

    def create(options: dict[str, Any], number: int) -> RankClient:
        handle = (
            as_actor(DistillationActor)
            .options(**options)
            .remote(
                spec,
                number,
                config.learner.ranks,
                _log_file(config, "learner", number),
                settings,
                teacher,
                config.teacher.dtype,
                config.telemetry.samples_per_step,
                PublishingSpec(
                    transport=config.weights.transport,
                    dtype=config.rollout.dtype,
                    bucket_bytes=config.weights.bucket_mb * 1_000_000,
                    replica_workers=config.rollout.tensor_parallel,
                    timeout_seconds=config.weights.transfer_timeout_seconds,
                ),
                config.run_dir / "bad_batches",
                config.telemetry.probe_every,
            )
        )
        return RankClient(handle)

    environment = thread_environment(config.learner.cpus, in_turn=in_turn)
    return ActorLauncher(parts.cluster.plan["learner"], environment, create)


@contextmanager
def supervised_group(
    parts: RunParts,
    *,
    name: str,
    model: str,
    schedule: LearningRateSchedule,
    train: Any,
    validation: Any,
    message: Callable[[str], None],
) -> Iterator[SupervisedGroup]:
    """Learner ranks for supervised fine-tuning of `model`. train, validation: references to the SupervisedSets.

    name: of the phase, for the files of their output. message: says what they wait for.
    """
    config = parts.config
    spec = _training_spec(parts, model=model, schedule=schedule)
    size = config.learner.ranks

    def create(options: dict[str, Any], rank: int) -> RankClient:
        log_file = _log_file(config, name, rank)
        return RankClient(
            as_actor(SupervisedActor).options(**options).remote(spec, rank, size, log_file, train, validation)
        )

    environment = thread_environment(config.learner.cpus, in_turn=True)
    launcher = ActorLauncher(parts.cluster.plan["learner"], environment, create)
    with launched(launcher, size, message=message) as clients:
        handles = [client.handle for client in clients]
        yield SupervisedGroup(handles, timeout_seconds=config.pipeline.call_timeout_seconds)


@contextmanager
def launched(launcher: ActorLauncher, count: int, *, message: Callable[[str], None]) -> Iterator[Sequence[Any]]:
    """The clients of `count` replicas that nobody supervises; they end with the block.

    Waits until the cluster has room for them, and says what is missing.
    """
    clients, reservations = [], []
    try:
        for number in range(count):
            reservation, there = launcher.reserve(number)
            reservations.append(reservation)
            name = f"{launcher.placement.role} {number}"
            while not ready_among([there], timeout_seconds=REMINDER_SECONDS):
                message(f"{name} is waiting for resources: {launcher.missing()}")
            get(there, timeout_seconds=REMINDER_SECONDS, work=f"{name}: its resources")
            clients.append(launcher.start(number, reservation))
        yield clients
    finally:
        for client in clients:
            client.stop()
        for reservation in reservations:
            launcher.release(reservation)


def _sampler_launcher(
    parts: RunParts,
    role: str,
    section: RolloutSection | TeacherSection,
    *,
    model: str,
    prompts: PromptReferences,
    mixture: MixtureSettings | None,
    temperature: float,
) -> ActorLauncher:
    config = parts.config
    environment = engine_environment(
        device=parts.cluster.device, threads=section.cpus, kv_cache_gib=section.kv_cache_gib
    )
    sampling = SamplingSettings(
        temperature=temperature,
        top_k=config.rollout.top_k,
        top_p=config.rollout.top_p,
        stop_token_ids=(parts.inputs.end_token_id,),
        max_response_tokens=config.rollout.max_response_tokens,
        seed=config.seed,
        mixture=mixture,
    )

    def create(options: dict[str, Any], number: int) -> RolloutClient:
        handle = (
            as_actor(RolloutActor)
            .options(**options)
            .remote(
                _engine_settings(parts, section, model, number),
                sampling,
                prompts.train,
                prompts.held_out,
                verdict_seconds=config.pipeline.call_timeout_seconds,
                log_file=_log_file(config, "rollout" if role == "rollout" else "teacher-samples", number),
            )
        )
        return RolloutClient(handle)

    return ActorLauncher(parts.cluster.plan[role], environment, create)


def _engine_settings(
    parts: RunParts, section: RolloutSection | TeacherSection, model: str, replica: int
) -> EngineSettings:
    of_teacher = section if isinstance(section, TeacherSection) else None
    return EngineSettings(
        model=model,
        dtype=section.dtype,
        max_model_tokens=max_sequence_tokens(parts.config),
        tensor_parallel=section.tensor_parallel,
        device=parts.cluster.device,
        vocabulary_size=parts.inputs.vocabulary_size,
        seed=parts.config.seed + replica,
        pipeline_parallel=of_teacher.pipeline_parallel if of_teacher else 1,
        quantization=of_teacher.quantization if of_teacher else None,
        arguments=of_teacher.engine_arguments if of_teacher else {},
        weight_transfer=BACKEND if of_teacher is None and parts.config.weights.transport == "nccl" else None,
    )


def schedule(config: RunConfig, phase: Phase, *, num_steps: int) -> LearningRateSchedule:
    """The learning rate of each of a phase's `num_steps` optimizer steps."""
    return LearningRateSchedule(
        peak=phase.learning_rate,
        warmup_steps=phase.warmup_steps,
        steps=num_steps,
        shape=config.learner.schedule,
        final=config.learner.final_learning_rate,
    )


def _training_spec(parts: RunParts, *, model: str, schedule: LearningRateSchedule) -> TrainingSpec:
    learner = parts.config.learner
    return TrainingSpec(
        model=model,
        vocabulary_size=parts.inputs.vocabulary_size,
        compute_dtype=learner.dtype,
        gradient_checkpointing=learner.gradient_checkpointing,
        lora=None if learner.lora is None else LoraSettings(**learner.lora.model_dump()),
        optimizer=OptimizerSettings(
            betas=learner.betas,
            eps=learner.eps,
            weight_decay=learner.weight_decay,
            max_gradient_norm=learner.max_gradient_norm,
        ),
        schedule=schedule,
        micro_batch_tokens=learner.micro_batch_tokens,
        logits_memory_mb=parts.config.objective.logits_memory_mb,
        device=parts.cluster.device,
        threads=learner.cpus,
        seed=parts.config.seed,
    )


def _log_file(config: RunConfig, role: str, number: int) -> Path:
    return config.run_dir / "logs" / f"{role}-{number}.log"
