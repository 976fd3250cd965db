"""The MiniLLM phase: rollout workers, teachers and a learner group around one pipeline, measured before and after."""

from dataclasses import asdict, dataclass, replace

import ray

from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.config.run import RunConfig
from minillm_ray.data import PromptSet
from minillm_ray.evaluation.held_out import HeldOutEvaluation, HeldOutScores
from minillm_ray.phases.objective import objective_settings
from minillm_ray.phases.plain_text import PlainTextSupply
from minillm_ray.phases.roles import (
    PromptReferences,
    distillation_group,
    rollout_pool,
    teacher_pool,
    teacher_sampling_pool,
)
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.step_recorder import StepRecorder
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.synchronous import RoundPlan, SynchronousPipeline
from minillm_ray.teacher.client import TeacherPool


@dataclass(frozen=True)
class MiniLLMScores:
    """Rows of the closing table."""

    teacher: HeldOutScores
    before: HeldOutScores
    after: HeldOutScores


def run_minillm(context: RunContext, phase: MiniLLMPhase, models: Models, *, name: str) -> tuple[Models, MiniLLMScores]:
    """Distil the teacher into the student. Returns the pair with the trained student, and the table's rows."""
    config, inputs, cluster = context.config, context.inputs, context.cluster
    settings = objective_settings(config)
    context.events.write("objective", {"phase": name} | asdict(settings))
    train, held_out = _prompts(context, name)
    prompts = PromptReferences(ray.put(train), ray.put(held_out))
    evaluation = HeldOutEvaluation(
        prompts=prompts.held_out,
        num_prompts=min(config.evaluation.prompts, len(held_out)),
        batch_size=config.evaluation.batch_size,
        tokenizer=inputs.tokenizer,
        timeout_seconds=config.pipeline.call_timeout_seconds,
    )
    startup = config.pipeline.startup_timeout_seconds
    context.console.message(f"{name}: the teacher answers {evaluation.num_prompts} held-out prompts")
    with teacher_sampling_pool(config, cluster, inputs, model=models.teacher, prompts=prompts) as sampler:
        sampler.ready(startup_timeout_seconds=startup)
        teacher_scores = evaluation.teacher(sampler)
    context.console.message(f"{name}: starting {_counts(config)}")
    with (
        rollout_pool(config, cluster, inputs, model=models.student, prompts=prompts) as rollout,
        teacher_pool(config, cluster, inputs, model=models.teacher) as teacher,
        distillation_group(
            config, cluster, inputs, phase, student=models.student, teacher=models.teacher, settings=settings
        ) as learner,
    ):
        rollout.ready(startup_timeout_seconds=startup)
        teacher.ready(startup_timeout_seconds=startup)
        learner.join(startup_timeout_seconds=startup)
        before = evaluation.student(rollout, teacher, learner)
        context.console.message(f"{name}: held-out reverse KL before {before.reverse_kl:.4f} nats a token")
        pipeline = SynchronousPipeline(
            rollout,
            teacher,
            learner,
            Ledger(len(train), seed=config.seed),
            RoundPlan(phase.rollouts, phase.minibatch, phase.inner_epochs),
            plain_text=_plain_text(context, phase, teacher if settings.text_kd_ratio > 0 else None),
        )
        _train(context, phase, pipeline, name=name, num_prompts_cut=train.num_cut)
        after = evaluation.student(rollout, teacher, learner)
        student = config.run_dir / "student"
        learner.save(student)
    scores = MiniLLMScores(teacher_scores, before, after)
    context.events.write("held_out_scores", {"phase": name} | asdict(scores))
    return replace(models, student=str(student)), scores


def _prompts(context: RunContext, name: str) -> tuple[PromptSet, PromptSet]:
    """Training and held-out prompts; how many were cut is said once."""
    inputs = context.inputs
    train, held_out = inputs.prompts(inputs.train), inputs.prompts(inputs.held_out)
    if train.num_cut or held_out.num_cut:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} training prompts and {held_out.num_cut} of {len(held_out)} "
            f"held-out prompts were cut to data.max_prompt_tokens={inputs.max_prompt_tokens}"
        )
    return train, held_out


def _plain_text(context: RunContext, phase: MiniLLMPhase, teacher: TeacherPool | None) -> PlainTextSupply | None:
    """teacher: given where the text loss has a share of divergence to it."""
    if context.inputs.plain_text is None:
        return None
    return PlainTextSupply(
        context.inputs.plain_text,
        chunks_a_step=phase.text_chunks or phase.minibatch,
        seed=context.config.seed,
        teacher=teacher,
    )


def _train(
    context: RunContext, phase: MiniLLMPhase, pipeline: SynchronousPipeline, *, name: str, num_prompts_cut: int
) -> None:
    """Every optimizer step of the phase, recorded."""
    recorder = StepRecorder(
        context,
        name,
        max_mismatch_nats=context.config.weights.max_mismatch_nats,
        num_prompts_cut=num_prompts_cut,
        inner_epochs=phase.inner_epochs,
    )
    context.console.begin(name, total_steps=phase.steps)
    for step in pipeline.steps(phase.steps):
        recorder.record(step, equal_weights=(step.step - 1) % phase.steps_a_round == 0)
    context.console.end()
    context.samples.flush()


def _counts(config: RunConfig) -> str:
    rollout, teacher, learner = config.rollout.replicas, config.teacher.replicas, config.learner.ranks
    return f"{rollout} rollout, {teacher} teacher and {learner} learner actors"
