"""Which student of a MiniLLM phase is its result: the last one, or the best of those that were measured."""

from pathlib import Path

from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.evaluation.held_out import HeldOutPrompts, HeldOutScores
from minillm_ray.phases.closing import KnownScores
from minillm_ray.phases.measure import measure_student
from minillm_ray.phases.run_context import RunContext
from minillm_ray.pipeline.crew import Crew

_BEFORE = "before"


class Picker:
    """Measures students, and keeps the one with the highest Rouge-L where the phase wants that one.

    known: the rows of the phase; a student that was measured before a resume is not measured again.
    """

    def __init__(
        self, context: RunContext, phase: MiniLLMPhase, known: KnownScores, measured: HeldOutPrompts, *, name: str
    ) -> None:
        self._context, self._phase, self._name = context, phase, name
        self._known, self._measured = known, measured
        self._keeps_best = phase.select == "rouge_l"
        self._best = context.config.run_dir / "phases" / name / "best"

    @property
    def before(self) -> HeldOutScores:
        """The student that the phase began with."""
        return self._known.rows[_BEFORE]

    def measure_before(self, crew: Crew) -> None:
        """The student as it is, unless that was done before a resume."""
        if _BEFORE not in self._known.rows:
            self._known.put(_BEFORE, measure_student(crew, self._measured))

    def consider(self, step: int, crew: Crew) -> None:
        """Measure the student of `step`, with the crew at rest and every rollout replica holding its weights."""
        if _row(step) in self._known.rows:
            return
        scores = measure_student(crew, self._measured)
        metrics = {
            "evaluation/reverse_kl_nats_per_token/mean": scores.reverse_kl,
            "evaluation/response_tokens/mean": scores.response_tokens,
            "evaluation/truncated_fraction/mean": scores.truncated_fraction,
        }
        if scores.rouge_l is not None:
            metrics["evaluation/rouge_l/mean"] = scores.rouge_l
        self._context.metrics.write(step=step, phase=self._name, metrics=metrics)
        if self._keeps_best and _rouge_l(scores) > max(map(_rouge_l, self._students.values()), default=-1.0):
            crew.ask_learner(lambda learner: learner.save(self._best), "saving the best student")
            fields = {"phase": self._name, "step": step, "rouge_l": scores.rouge_l}
            self._context.events.write("checkpoint_kept", fields)
        self._known.put(_row(step), scores)  # once its weights are on disk

    def result(self, crew: Crew) -> tuple[Path, HeldOutScores]:
        """Where the picked student is, and its row of the closing table."""
        step = max(self._students, key=lambda step: _rouge_l(self._students[step])) if self._keeps_best else None
        if step is None:
            student = self._context.config.run_dir / "student"
            crew.ask_learner(lambda learner: learner.save(student), "saving the model")
            return student, self._students[self._phase.steps]
        scores = self._students[step]
        self._context.console.message(f"{self._name}: Rouge-L was highest after step {step}, {_rouge_l(scores):.2f}")
        return self._best, scores

    @property
    def _students(self) -> dict[int, HeldOutScores]:
        """By step, in the order in which they were measured."""
        prefix = _row("")
        rows = self._known.rows.items()
        return {int(key.removeprefix(prefix)): row for key, row in rows if key.startswith(prefix)}


def stops(phase: MiniLLMPhase, *, done_steps: int) -> list[int]:
    """The steps after which a phase that has made `done_steps` is measured, ascending; the last step is one of them.

    The step that it stands at is among them: a run may have ended between its checkpoint and its measurement.
    """
    every = phase.evaluate_every or phase.steps
    return [step for step in [*range(every, phase.steps, every), phase.steps] if step >= done_steps]


def _row(step: int | str) -> str:
    return f"step {step}"


def _rouge_l(scores: HeldOutScores) -> float:
    """A phase that picks by it has references: its inputs were checked for them."""
    assert scores.rouge_l is not None
    return scores.rouge_l
