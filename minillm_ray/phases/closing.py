"""The closing table: what teacher, student before and student after make of the held-out prompts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from minillm_ray.data import PromptSet
from minillm_ray.evaluation.held_out import HeldOutPrompts, HeldOutScores
from minillm_ray.learner.schedule import LearningRateSchedule
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.assembly import assembled
from minillm_ray.phases.measure import measure_student, measure_teacher
from minillm_ray.phases.roles import (
    PromptReferences,
    RunParts,
    learner_launcher,
    rollout_launcher,
    teacher_launcher,
    teacher_sampler_launcher,
)
from minillm_ray.phases.run_context import Models, RunContext
from minillm_ray.telemetry.files import write_atomically

_NOT_TRAINED = LearningRateSchedule(peak=0.0, warmup_steps=0, steps=1, shape="constant", final=0.0)


@dataclass(frozen=True)
class ClosingScores:
    """Rows of the table. teacher: None where `evaluation.teacher_row` is off. before: None where nobody measured it."""

    teacher: HeldOutScores | None
    before: HeldOutScores | None
    after: HeldOutScores


def read_scores(rows: Mapping[str, Any]) -> ClosingScores:
    """From what `dataclasses.asdict` made of them."""
    teacher, before = (None if rows[name] is None else HeldOutScores(**rows[name]) for name in ("teacher", "before"))
    return ClosingScores(teacher, before, HeldOutScores(**rows["after"]))


class KnownScores:
    """Rows that are measured already, in a file of the phase: a run that resumes does not measure them again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, HeldOutScores] = {}
        if path.exists():
            self._rows = {key: HeldOutScores(**row) for key, row in json.loads(path.read_text()).items()}

    @property
    def rows(self) -> Mapping[str, HeldOutScores]:
        """In the order in which they were measured."""
        return self._rows

    def put(self, key: str, scores: HeldOutScores) -> None:
        self._rows[key] = scores
        write_atomically(self._path, json.dumps({key: asdict(row) for key, row in self._rows.items()}, indent=1))


def held_out_prompts(context: RunContext, held_out: PromptSet, reference: Any) -> HeldOutPrompts:
    """What the table is measured on. reference: to `held_out` in the object store."""
    config = context.config
    return HeldOutPrompts(
        prompts=reference,
        num_prompts=min(config.evaluation.prompts, len(held_out)),
        batch_size=config.evaluation.batch_size,
        tokenizer=context.inputs.tokenizer,
        timeout_seconds=config.pipeline.call_timeout_seconds,
    )


def know_teacher(
    context: RunContext,
    models: Models,
    prompts: PromptReferences,
    measured: HeldOutPrompts,
    known: KnownScores,
    *,
    name: str,
) -> None:
    """Have the teacher's row measured, where it is wanted and not known yet. No teacher replica may run."""
    config = context.config
    if not config.evaluation.teacher_row or "teacher" in known.rows:
        return
    context.console.message(f"{name}: the teacher answers {measured.num_prompts} held-out prompts")
    sampler = teacher_sampler_launcher(
        RunParts(config, context.cluster, context.inputs),
        model=models.teacher,
        prompts=prompts,
        temperature=config.objective.temperature,
    )
    known.put(
        "teacher",
        measure_teacher(
            sampler,
            config.teacher.replicas,
            measured,
            startup_seconds=config.pipeline.startup_timeout_seconds,
            call_seconds=config.pipeline.call_timeout_seconds,
            message=context.console.message,
        ),
    )


def measure_result(context: RunContext, models: Models, *, name: str) -> ClosingScores:
    """The table of a run whose last phase, `name`, measured nothing itself: actors are started for it alone."""
    config, inputs = context.config, context.inputs
    held_out = inputs.prompts(inputs.held_out)
    reference = ray.put(held_out)
    prompts = PromptReferences(reference, reference)
    measured = held_out_prompts(context, held_out, reference)
    known = KnownScores(config.run_dir / "phases" / name / "scores.json")
    know_teacher(context, models, prompts, measured, known, name=name)
    context.console.message(f"{name}: the student answers {measured.num_prompts} held-out prompts")
    parts = RunParts(config, context.cluster, inputs)
    unmixed = ObjectiveSettings(alpha=0.0, temperature=config.objective.temperature)
    launchers = {
        "rollout": rollout_launcher(parts, model=models.student, prompts=prompts, settings=unmixed),
        "teacher": teacher_launcher(parts, model=models.teacher),
        "learner": learner_launcher(
            parts,
            student=models.student,
            teacher=models.teacher,
            settings=unmixed,
            schedule=_NOT_TRAINED,
            in_turn=True,
        ),
    }
    with assembled(context, launchers) as (crew, _):
        crew.learner.on_ready = lambda: crew.publish(1)
        crew.learner.on_lost = crew.forget_weights
        crew.rollout.scale(config.rollout.replicas)
        crew.teacher.scale(config.teacher.replicas)
        crew.learner.start(config.learner.ranks, restore_from=None)
        after = measure_student(crew, measured)
    scores = ClosingScores(known.rows.get("teacher"), None, after)
    context.events.write("held_out_scores", {"phase": name} | asdict(scores))
    return scores
