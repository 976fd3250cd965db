"""Each optimizer step of the MiniLLM phase: its numbers, samples and progress line, and when to stop the run."""

import time
from collections.abc import Callable, Sequence

from minillm_ray.config.errors import RunError
from minillm_ray.data.token_texts import token_texts
from minillm_ray.learner.distillation import StepReport
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.phases.round_metrics import round_metrics
from minillm_ray.phases.run_context import RunContext
from minillm_ray.pipeline.training import Step
from minillm_ray.telemetry.console import StepNumbers
from minillm_ray.telemetry.samples import Sample
from minillm_ray.weights.buffers import WeightMismatchError

_MAX_SKIPPED_IN_A_ROW = 3


class StepRecorder:
    """Writes each step's numbers and samples, and stops a run that has gone wrong."""

    def __init__(
        self,
        context: RunContext,
        phase: str,
        *,
        max_mismatch_nats: float,
        num_prompts_cut: int,
        take_activity: Callable[[], dict[str, float]],
    ) -> None:
        """take_activity: idle times by declared name since it was called last."""
        self._context = context
        self._phase = phase
        self._max_mismatch_nats = max_mismatch_nats
        self._num_prompts_cut = num_prompts_cut
        self._skipped_in_a_row = 0
        self._began = time.monotonic()
        self._take_activity = take_activity
        take_activity()  # what was before the first step belongs to none

    def record(self, step: Step) -> None:
        """Raises RunError where the run should not go on."""
        reports: Sequence[StepReport] = step.reports
        outcome = reports[0].outcome
        statistics = combine_step([report.metrics for report in reports])
        numbers = finish_step(statistics) | {
            "learner/gradient_norm/global": outcome.gradient_norm,
            "learner/learning_rate/current": outcome.learning_rate,
            "learner/step_seconds/total": step.step_seconds,
            "data/prompts_cut/total": float(self._num_prompts_cut),
        }
        num_tokens = statistics["rollout/response_tokens/mean"].sum  # type: ignore[union-attr]
        elapsed = time.monotonic() - self._began
        self._began = time.monotonic()
        numbers["pipeline/step_seconds/total"] = elapsed
        numbers |= self._take_activity()
        if step.round is not None:
            numbers |= round_metrics(step.round)
        if not step.is_on_policy:
            for statistic in ("mean", "max"):
                numbers.pop(f"learner/sampler_mismatch_nats/{statistic}", None)
        self._context.metrics.write(step=step.step, phase=self._phase, metrics=numbers)
        self._context.samples.write(self._samples(step.step, reports))
        self._context.status.step(step.step)
        self._context.console.step(
            step.step,
            StepNumbers(
                loss=numbers.get("objective/loss/total"),
                reverse_kl=numbers.get("objective/kl_nats_per_token/mean"),
                tokens_per_second=num_tokens / elapsed,
                response_tokens=numbers["rollout/response_tokens/mean"],
            ),
        )
        self._check(step.step, numbers, applied=outcome.applied)

    def _check(self, step: int, numbers: dict[str, float], *, applied: bool) -> None:
        mismatch = numbers.get("learner/sampler_mismatch_nats/mean", 0.0)
        if not mismatch <= self._max_mismatch_nats:
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
                response_tokens=token_texts(sample.trajectory.response_ids.tolist(), decode),
                prompt=decode(sample.trajectory.prompt_ids),
                response=decode(sample.trajectory.response_ids),
                truncated=sample.trajectory.truncated,
            )
            for report in reports
            for sample in report.samples
        ]
