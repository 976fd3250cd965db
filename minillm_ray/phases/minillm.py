"""The MiniLLM phase: rollout workers, teachers and learner ranks around one training, measured before and after."""

from dataclasses import asdict, replace

import ray

from minillm_ray.checkpoint.folder import remove_leftovers
from minillm_ray.config.errors import RunError, Terminated
from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.data import PromptSet
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.assembly import assembled
from minillm_ray.phases.closing import ClosingScores, KnownScores, held_out_prompts, know_teacher
from minillm_ray.phases.crew_watch import CrewWatch
from minillm_ray.phases.objective import objective_settings, payload_notice
from minillm_ray.phases.pick import Picker, stops
from minillm_ray.phases.plain_text import PlainTextSupply
from minillm_ray.phases.roles import (
    PromptReferences,
    RunParts,
    learner_launcher,
    rollout_launcher,
    schedule,
    teacher_launcher,
)
from minillm_ray.phases.run_checkpoints import RunCheckpoints
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.phases.step_recorder import StepRecorder
from minillm_ray.phases.stop import orderly_stop
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.training import Progress, RoundPlan, Training


def run_minillm(context: RunContext, phase: MiniLLMPhase, models: Models, *, name: str) -> tuple[Models, ClosingScores]:
    """Distil the teacher into the student. Returns the pair with the trained student, and the table's rows.

    Raises Terminated after SIGTERM, with a checkpoint where the grace period allowed one.
    """
    config = context.config
    settings = objective_settings(config)
    context.events.write("objective", {"phase": name} | asdict(settings))
    if notice := payload_notice(config):
        context.console.message(f"{name}: {notice}")
    train, held_out = _prompts(context, phase, name)
    prompts = PromptReferences(ray.put(train), ray.put(held_out))
    measured = held_out_prompts(context, held_out, prompts.held_out)
    known = KnownScores(config.run_dir / "phases" / name / "scores.json")
    know_teacher(context, models, prompts, measured, known, name=name)
    picker = Picker(context, phase, known, measured, name=name)
    parts = RunParts(config, context.cluster, context.inputs)
    context.console.message(f"{name}: starting {_counts(context)}")
    launchers = {
        "rollout": rollout_launcher(parts, model=models.student, prompts=prompts, settings=settings),
        "teacher": teacher_launcher(parts, model=models.teacher),
        "learner": learner_launcher(
            parts,
            student=models.student,
            teacher=models.teacher,
            settings=settings,
            schedule=schedule(config, phase, num_steps=phase.steps),
            in_turn=config.pipeline.mode == "sync",
        ),
    }
    with assembled(context, launchers) as (crew, watch):
        _distil(context, phase, crew, watch, settings, picker, name=name, train=train)
        student, after = picker.result(crew)
    scores = ClosingScores(known.rows.get("teacher"), picker.before, after)
    context.events.write("held_out_scores", {"phase": name} | asdict(scores))
    return replace(models, student=str(student)), scores


def _distil(
    context: RunContext,
    phase: MiniLLMPhase,
    crew: Crew,
    watch: CrewWatch,
    settings: ObjectiveSettings,
    picker: Picker,
    *,
    name: str,
    train: PromptSet,
) -> None:
    """From the newest checkpoint, or the beginning, to the last round; measured where the phase wants it."""
    config = context.config
    ledger = Ledger(len(train), seed=config.seed)
    checkpoints_folder = config.run_dir / "checkpoints" / name
    remove_leftovers(checkpoints_folder)
    checkpoints = RunCheckpoints(
        checkpoints_folder,
        config.checkpoint,
        crew,
        phase=name,
        first=Progress(0, ledger.state()),
        write_event=context.events.write,
        message=context.console.message,
    )
    progress, restore_from = checkpoints.newest()
    done_steps = progress.rounds * phase.steps_a_round
    if restore_from is not None:
        context.console.message(f"{name}: continues after step {done_steps}, from {restore_from}")
        context.events.write("resumed", {"phase": name, "step": done_steps})
    crew.learner.on_ready = lambda: crew.publish(progress.rounds + 1)
    crew.learner.on_lost = crew.forget_weights
    crew.rollout.scale(config.rollout.replicas)
    crew.teacher.scale(config.teacher.replicas)
    crew.learner.start(config.learner.ranks, restore_from=restore_from)
    picker.measure_before(crew)
    context.console.message(f"{name}: held-out reverse KL before {picker.before.reverse_kl:.4f} nats a token")
    context.console.begin(name, total_steps=phase.steps, done_steps=done_steps)
    context.status.begin(name, total_steps=phase.steps, done_steps=done_steps)
    for stop in stops(phase, done_steps=done_steps):
        recorder = StepRecorder(
            context,
            name,
            max_mismatch_nats=config.weights.max_mismatch_nats,
            num_prompts_cut=train.num_cut,
            take_activity=watch.take,
        )
        with orderly_stop(config.pipeline.grace_seconds) as stop_asked:
            training = Training(
                crew,
                ledger,
                _plan(context, phase, settings, steps=stop),
                progress,
                checkpoints,
                on_step=recorder.record,
                stop_asked=stop_asked,
                plain_text=_plain_text(context, phase, settings),
            )
            finished = training.run()
        if not finished:
            context.console.end()
            context.samples.flush()
            context.console.message(f"{name}: stopped; train again continues from {checkpoints_folder}")
            raise Terminated
        progress = training.progress
        _keep_student(crew, checkpoints, rounds=progress.rounds)
        picker.consider(stop, crew)
    context.console.end()
    context.samples.flush()


def _keep_student(crew: Crew, checkpoints: RunCheckpoints, *, rounds: int) -> None:
    """While it is measured the student stays: a learner that falls takes up the last checkpoint, nobody pulls anew."""

    def lost() -> None:
        kept, crew.learner.restore_from = checkpoints.newest()
        if kept.rounds != rounds:  # the disk was full
            raise RunError(
                f"the learner was lost after {rounds} rounds, but the newest checkpoint is of {kept.rounds}; train "
                f"again continues from it"
            )

    crew.learner.on_lost, crew.learner.on_ready = lost, lambda: None


def _plan(context: RunContext, phase: MiniLLMPhase, settings: ObjectiveSettings, *, steps: int) -> RoundPlan:
    """The phase's rounds up to optimizer step `steps`."""
    return RoundPlan(
        rollouts=phase.rollouts,
        minibatch=phase.minibatch,
        inner_epochs=phase.inner_epochs,
        rounds=steps // phase.steps_a_round,
        max_staleness=context.config.pipeline.staleness,
        mixed=settings.alpha > 0,
    )


def _prompts(context: RunContext, phase: MiniLLMPhase, name: str) -> tuple[PromptSet, PromptSet]:
    """Training and held-out prompts; how many were cut is said once."""
    inputs = context.inputs
    train, held_out = inputs.prompts(inputs.train[: phase.train_rows]), inputs.prompts(inputs.held_out)
    if train.num_cut or held_out.num_cut:
        context.console.message(
            f"{name}: {train.num_cut} of {len(train)} training prompts and {held_out.num_cut} of {len(held_out)} "
            f"held-out prompts were cut to data.max_prompt_tokens={inputs.max_prompt_tokens}"
        )
    return train, held_out


def _plain_text(context: RunContext, phase: MiniLLMPhase, settings: ObjectiveSettings) -> PlainTextSupply | None:
    if context.inputs.plain_text is None:
        return None
    return PlainTextSupply(
        context.inputs.plain_text,
        chunks_a_step=phase.text_chunks or phase.minibatch,
        seed=context.config.seed,
        with_teacher=settings.text_kd_ratio > 0,
    )


def _counts(context: RunContext) -> str:
    config = context.config
    rollout, teacher, learner = config.rollout.replicas, config.teacher.replicas, config.learner.ranks
    return f"{rollout} rollout, {teacher} teacher and {learner} learner actors"
