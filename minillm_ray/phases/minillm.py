"""The MiniLLM phase: rollout workers, teachers and a learner group around one pipeline, measured before and after."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import ray

from minillm_ray.config.errors import InputError, RunError
from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.config.run import RunConfig
from minillm_ray.evaluation.held_out import HeldOutEvaluation, HeldOutScores
from minillm_ray.learner.distillation import StepReport
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.plain_text import PlainTextSupply
from minillm_ray.phases.roles import (
    PromptReferences,
    distillation_group,
    rollout_pool,
    teacher_pool,
    teacher_sampling_pool,
)
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.synchronous import PipelineStep, RoundPlan, SynchronousPipeline
from minillm_ray.telemetry.console import StepNumbers
from minillm_ray.telemetry.samples import Sample
from minillm_ray.weights.buffers import WeightMismatchError

_MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class MiniLLMScores:
    """Rows of the closing table."""

    teacher: HeldOutScores
    before: HeldOutScores
    after: HeldOutScores


def objective_settings(config: RunConfig) -> ObjectiveSettings:
    """The objective that `config` asks for. Raises InputError for values that contradict each other."""
    section = config.objective
    given = {name: value for name, value in section.model_dump(exclude={"preset"}).items() if value is not None}
    preset_needs_horizon = section.preset == "official" or section.return_norm == "horizon"
    if preset_needs_horizon:
        given.setdefault("horizon", config.rollout.max_response_tokens)
    try:
        settings = ObjectiveSettings.from_preset(section.preset, **given)
    except ValueError as error:
        raise InputError(str(error)) from None
    if settings.alpha > 0:
        raise InputError(
            f"objective.alpha is {settings.alpha}; expected 0: responses are drawn from the student alone. "
            f"Set objective.alpha=0"
        )
    return settings


def run_minillm(context: RunContext, phase: MiniLLMPhase, models: Models, *, name: str) -> tuple[Models, MiniLLMScores]:
    """Distil the teacher into the student. Returns the pair with the trained student, and the table's rows."""
    config, inputs, cluster = context.config, context.inputs, context.cluster
    settings = objective_settings(config)
    context.events.write("objective", {"phase": name} | asdict(settings))
    train, held_out = inputs.prompts(inputs.train), inputs.prompts(inputs.held_out)
    if train.num_cut or held_out.num_cut:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} training prompts and {held_out.num_cut} of {len(held_out)} "
            f"held-out prompts were cut to data.max_prompt_tokens={config.data.max_prompt_tokens}"
        )
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
    with ExitStack() as actors:
        rollout = actors.enter_context(rollout_pool(config, cluster, inputs, model=models.student, prompts=prompts))
        teacher = actors.enter_context(teacher_pool(config, cluster, inputs, model=models.teacher))
        learner = actors.enter_context(
            distillation_group(
                config, cluster, inputs, phase, student=models.student, teacher=models.teacher, settings=settings
            )
        )
        context.console.message(f"{name}: starting {_counts(config)}")
        rollout.ready(startup_timeout_seconds=startup)
        teacher.ready(startup_timeout_seconds=startup)
        learner.join(startup_timeout_seconds=startup)
        before = evaluation.student(rollout, teacher, learner)
        context.console.message(f"{name}: held-out reverse KL before {before.reverse_kl:.4f} nats a token")
        plan = RoundPlan(phase.rollouts, phase.minibatch, phase.inner_epochs)
        supply = None
        if inputs.plain_text is not None:
            supply = PlainTextSupply(
                inputs.plain_text,
                chunks_a_step=phase.text_chunks or phase.minibatch,
                seed=config.seed,
                teacher=teacher if settings.text_kd_ratio > 0 else None,
            )
        ledger = Ledger(len(train), seed=config.seed)
        pipeline = SynchronousPipeline(rollout, teacher, learner, ledger, plan, plain_text=supply)
        recorder = _StepRecorder(context, name, config.weights.max_mismatch_nats, len(train), train.num_cut)
        context.console.begin(name, total_steps=phase.steps)
        for step in pipeline.steps(phase.steps):
            recorder.record(step, equal_weights=(step.step - 1) % (phase.steps_a_round) == 0)
        context.console.end()
        context.samples.flush()
        after = evaluation.student(rollout, teacher, learner)
        student = config.run_dir / "student"
        learner.save(student)
    return replace(models, student=str(student)), MiniLLMScores(teacher_scores, before, after)


class _StepRecorder:
    """Writes each step's numbers and samples, and stops a run that has gone wrong."""

    def __init__(
        self, context: RunContext, phase: str, max_mismatch_nats: float, num_prompts: int, num_cut: int
    ) -> None:
        self._context = context
        self._phase = phase
        self._max_mismatch_nats = max_mismatch_nats
        self._num_cut = num_cut
        self._skipped_in_a_row = 0
        self._began = time.monotonic()

    def record(self, step: PipelineStep, *, equal_weights: bool) -> None:
        """equal_weights: the step trained tokens that the learner's own weights drew."""
        reports: Sequence[StepReport] = step.reports
        outcome = reports[0].outcome
        statistics = combine_step([report.metrics for report in reports])
        numbers = finish_step(statistics) | {
            "learner/gradient_norm/global": outcome.gradient_norm,
            "learner/learning_rate/current": outcome.learning_rate,
            "learner/step_seconds/total": step.step_seconds,
            "data/prompts_cut/total": float(self._num_cut),
        }
        num_tokens = statistics["rollout/response_tokens/mean"].sum  # type: ignore[union-attr]
        elapsed = time.monotonic() - self._began
        self._began = time.monotonic()
        numbers["pipeline/step_seconds/total"] = elapsed
        if step.round is not None:
            numbers |= {
                "rollout/generate_seconds/total": step.round.generate_seconds,
                "teacher/score_seconds/total": step.round.score_seconds,
                "weights/publish_and_pull_seconds/total": step.round.weight_seconds,
            }
        if not equal_weights:
            for statistic in ("mean", "max"):
                numbers.pop(f"learner/sampler_mismatch_nats/{statistic}", None)
        self._context.metrics.write(step=step.step, phase=self._phase, metrics=numbers)
        self._context.samples.write(self._samples(step.step, reports))
        self._context.console.step(
            step.step,
            StepNumbers(
                loss=numbers.get("objective/loss/total"),
                reverse_kl=numbers.get("objective/kl_nats_per_token/mean"),
                tokens_per_second=num_tokens / elapsed,
                response_tokens=numbers["rollout/response_tokens/mean"],
            ),
        )
        self._check(step.step, numbers, applied=outcome.applied, equal_weights=equal_weights)

    def _check(self, step: int, numbers: dict[str, float], *, applied: bool, equal_weights: bool) -> None:
        mismatch = numbers.get("learner/sampler_mismatch_nats/mean", 0.0)
        if equal_weights and not mismatch <= self._max_mismatch_nats:
            raise WeightMismatchError(
                f"step {step}: the rollout workers' log-probabilities are {mismatch:.3g} nats a token off the "
                f"learner's at the same weights; expected at most {self._max_mismatch_nats:g} "
                f"(weights.max_mismatch_nats). The samplers do not hold the published weights, or their dtype is "
                f"too coarse: try rollout.dtype=float32"
            )
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if not applied:
            self._context.events.write(
                "step_skipped", {"phase": self._phase, "step": step, "reason": "gradient is not finite"}
            )
        if self._skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise RunError(
                f"step {step}: the gradient was not finite {_MAX_SKIPPED_IN_A_ROW} times in a row. The last minibatch "
                f"is in {self._context.config.run_dir / 'bad_batches'}. Lower the learning rate, or set "
                f"learner.dtype=float32"
            )

    def _samples(self, step: int, reports: Sequence[StepReport]) -> list[Sample]:
        decode = self._context.inputs.tokenizer.decode
        return [
            Sample(
                step=step,
                phase=self._phase,
                prompt_index=sample.trajectory.prompt_index,
                weight_version=int(sample.trajectory.weight_version[0]),
                prompt_token_ids=sample.trajectory.prompt_ids.tolist(),
                response_token_ids=sample.trajectory.response_ids.tolist(),
                kl=sample.kl.tolist(),
                student_logprob=sample.student_logprob.tolist(),
                teacher_logprob=sample.teacher_logprob.tolist(),
                prompt=decode(sample.trajectory.prompt_ids),
                response=decode(sample.trajectory.response_ids),
                truncated=sample.trajectory.truncated,
            )
            for report in reports
            for sample in report.samples
        ]


def _counts(config: RunConfig) -> str:
    rollout, teacher, learner = config.rollout.replicas, config.teacher.replicas, config.learner.ranks
    return f"{rollout} rollout, {teacher} teacher and {learner} learner actors"
