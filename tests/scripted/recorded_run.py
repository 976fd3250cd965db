"""The folder of a run that never ran: what the real writers make of numbers that behave like a run's."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from minillm_ray.telemetry.events import EventsWriter
from minillm_ray.telemetry.metrics import MetricsWriter
from minillm_ray.telemetry.samples import Sample, SamplesWriter

BEGAN = 1_767_225_600.0
PROMPT = "Below is an instruction that describes a task.\n\n### Instruction:\nName a river.\n\n### Response:\n"
WORDS = (" The", " longest", " river", " in", " Europe", " is", " the", " Volga", ",\n", " not", " the", " Danube", ".")
SCORES = {
    "teacher": {"reverse_kl": 0.0, "rouge_l": 63.51, "response_tokens": 10.26, "truncated_fraction": 0.0},
    "before": {"reverse_kl": 0.9232, "rouge_l": 40.53, "response_tokens": 11.05, "truncated_fraction": 0.031},
    "after": {"reverse_kl": 0.2296, "rouge_l": 55.52, "response_tokens": 10.16, "truncated_fraction": 0.0},
}


@dataclass
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = BEGAN

    def __call__(self) -> float:
        return self.now


class RecordedRun:
    """Writes a run of an SFT and a MiniLLM phase into `folder`, the same one every time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.metrics = MetricsWriter(folder / "metrics.jsonl", clock=self.clock)
        self.events = EventsWriter(folder / "events.jsonl", clock=self.clock)
        self.samples = SamplesWriter(folder / "samples.parquet")
        self._random = random.Random(7)

    def write(self, *, steps: int = 150, done: bool = True) -> None:
        """The whole run; done: with its closing scores and its end, otherwise it goes on."""
        self.write_config(steps=steps)
        self._sft(steps // 2)
        self.events.write("phase_began", {"phase": "minillm", "number": 2})
        for step in range(1, steps + 1):
            self.minillm_step(step, steps)
        self._trouble(steps)
        if done:
            self.events.write("held_out_scores", {"phase": "2-minillm"} | SCORES)
            self.events.write("phase_ended", {"phase": "minillm", "number": 2})
            self.events.write("run_ended", {"status": "done"})
        self.samples.close()

    def write_config(self, *, steps: int = 150, **teacher: str) -> None:
        tree = {
            "run_dir": str(self.folder),
            "phases": [{"kind": "sft", "model": "student"}, {"kind": "minillm", "steps": steps}],
            "student": {"model": "/models/smollm2-15-layers"},
            "teacher": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"} | teacher,
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tree))

    def minillm_step(self, step: int, steps: int) -> None:
        noise, left = self._random.gauss, math.exp(-3 * step / steps)
        divergence = 0.22 + 0.75 * left + noise(0, 0.03)
        self.clock.now += 2.5
        numbers = {
            "objective/kl_nats_per_token/mean": divergence,
            **{f"objective/kl_nats_per_token/decile_{i}": divergence * (1.3 - 0.05 * i) for i in range(10)},
            "objective/loss/total": 2.1 * divergence + noise(0, 0.05),
            "objective/loss/single_step": divergence,
            "objective/loss/long_term": 1.1 * divergence + noise(0, 0.05),
            "objective/entropy_nats_per_token/mean": 1.4 + 0.8 * left + noise(0, 0.04),
            "objective/clip_fraction/mean": abs(noise(0.01, 0.006)),
            "objective/effective_sample_size_fraction/mean": 0.97 + noise(0, 0.005),
            "objective/ratio/mean": 1 + noise(0, 0.01),
            "objective/ratio/max": 1.5 + abs(noise(0, 0.4)),
            "learner/gradient_norm/global": math.exp(noise(0.2, 0.5)) * (40 if step == steps // 3 else 1),
            "learner/learning_rate/current": 5e-6 * min(1, step / 10),
            "learner/step_seconds/total": 0.9 + abs(noise(0, 0.05)),
            "rollout/response_tokens/mean": 22 - 11 * left + noise(0, 0.5),
            "rollout/truncated_fraction/mean": max(0.0, noise(0.01, 0.01)),
            "rollout/tokens_per_second/total": 740 + noise(0, 30),
            "rollout/generate_seconds/total": 1.1 + noise(0, 0.05),
            "teacher/score_seconds/total": 0.35 + noise(0, 0.02),
            "weights/publish_and_pull_seconds/total": 0.08 + abs(noise(0, 0.01)),
        }
        if steps > 10 and step in (steps // 3, steps // 3 + 1):
            numbers |= {name: math.nan for name in numbers if name.startswith("objective/")}
        if step % max(1, steps // 8) == 0:
            numbers["objective/long_term_gradient_snr/probe"] = 0.4 + abs(noise(0, 0.1))
        self.metrics.write(step=step, phase="2-minillm", metrics=numbers)
        self.samples.write([self.sample(step, number) for number in range(2)])

    def sample(self, step: int, number: int) -> Sample:
        student = [-abs(self._random.gauss(0, 1.2)) for _ in WORDS]
        teacher = [min(0.0, value + self._random.gauss(0, 1.4)) for value in student]
        return Sample(
            step=step,
            phase="2-minillm",
            prompt_index=17 * step + number,
            weight_version=step - 1,
            prompt_token_ids=[5, 6],
            response_token_ids=list(range(len(WORDS))),
            kl=[abs(p - q) / 2 for p, q in zip(teacher, student, strict=True)],
            student_logprob=student,
            teacher_logprob=teacher,
            response_tokens=WORDS,
            prompt=PROMPT,
            response="".join(WORDS),
            truncated=number == 1,
        )

    def _sft(self, steps: int) -> None:
        self.events.write("phase_began", {"phase": "sft", "number": 1})
        for step in range(1, steps + 1):
            self.clock.now += 0.4
            loss = 1.2 + 3 * math.exp(-6 * step / steps) + self._random.gauss(0, 0.06)
            numbers = {
                "learner/supervised_loss_nats_per_token/train": loss,
                "learner/gradient_norm/global": 1 + abs(self._random.gauss(0, 0.4)),
                "learner/learning_rate/current": 1e-3,
                "learner/step_seconds/total": 0.4,
            }
            if step % (steps // 3 or 1) == 0:
                numbers["learner/supervised_loss_nats_per_token/validation"] = loss + 0.1
            self.metrics.write(step=step, phase="1-sft-student", metrics=numbers)
        self.events.write("phase_ended", {"phase": "sft", "number": 1})

    def _trouble(self, steps: int) -> None:
        """Events of the MiniLLM phase, each at its share of the way; they are written late, which nobody may mind."""
        end = self.clock.now
        for left, kind, fields in (
            (0.67, "step_skipped", {"phase": "2-minillm", "step": steps // 3, "reason": "gradient is not finite"}),
            (0.5, "rollout_lost", {"replica": 1, "reason": "SIGKILL"}),
            (0.48, "rollout_ready", {"replica": 1}),
            (0.3, "scale_changed", {"role": "rollout", "from": 2, "to": 4}),
            (0.1, "run_resumed", {"step": steps * 9 // 10}),
        ):
            self.clock.now = end - left * 2.5 * steps
            self.events.write(kind, fields)
        self.clock.now = end
