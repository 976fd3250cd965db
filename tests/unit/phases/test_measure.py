"""The rows of the closing table, from a crew and from the teacher's own actors, whatever is lost on the way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.config.errors import InputError, RunError
from minillm_ray.evaluation.held_out import HeldOutPrompts, HeldOutScores
from minillm_ray.phases import measure
from minillm_ray.phases.measure import measure_student, measure_teacher
from minillm_ray.pipeline.protocols import Task
from minillm_ray.telemetry.reductions import Mean

LOST = SimpleNamespace(num_lost=1)


class Prompts(HeldOutPrompts):
    """Five held-out prompts in batches of two; the text statistics are that of no text."""

    def __init__(self) -> None:
        super().__init__(None, num_prompts=5, batch_size=2, tokenizer=None, timeout_seconds=1.0)

    def scores(self, trajectories: Sequence[Any], divergence: Mean) -> HeldOutScores:
        assert trajectories == [f"answer to {index}" for index in range(5)]
        return HeldOutScores(divergence.value, None, 0.0, 0.0)


@dataclass
class ScriptedCrew:
    """Answers every prompt; the learner's ranks answer as `answers` says, one batch after the other."""

    answers: list[list[Any]]
    tasks: list[Task] = field(default_factory=list)

    def collect(self, tasks: Sequence[Task]) -> list[Any]:
        self.tasks += tasks
        return [
            SimpleNamespace(trajectory=f"answer to {task.prompt_index}", payload=f"states of {task.prompt_index}")
            for task in tasks
        ]

    def ask_learner(self, call: Callable[[Any], Any], work: str) -> list[Any]:
        asked = SimpleNamespace(
            divergence=lambda trajectories, payloads: list(zip(trajectories, payloads, strict=True))
        )
        assert all(a.removeprefix("answer to ") == p.removeprefix("states of ") for a, p in call(asked))
        return self.answers.pop(0)


def test_the_students_divergence_is_the_mean_over_all_tokens_of_all_batches_and_ranks() -> None:
    """Not the mean of means: 1 + 2 + 3 + 4 nats over 10 + 10 + 10 + 70 tokens."""
    crew: Any = ScriptedCrew([[Mean(1.0, 10.0), Mean(2.0, 10.0)], [Mean(3.0, 10.0)], [Mean(4.0, 70.0)]])
    assert measure_student(crew, Prompts()).reverse_kl == pytest.approx(0.1)
    assert [(task.split, task.prompt_index, task.mixed) for task in crew.tasks] == [
        ("held_out", index, False) for index in range(5)
    ]


def test_a_batch_that_went_with_a_node_is_answered_again_and_counted_once() -> None:
    """Also where only one of the ranks lost something."""
    lost = [[LOST], [Mean(9.0, 1.0), LOST]]
    crew: Any = ScriptedCrew([[Mean(1.0, 1.0)], *lost, [Mean(1.0, 1.0)], [Mean(1.0, 1.0)]])
    assert measure_student(crew, Prompts()).reverse_kl == 1.0
    assert [task.prompt_index for task in crew.tasks] == [0, 1, 2, 3, 2, 3, 2, 3, 4]


class ScriptedSamplers:
    """Two of the teacher's sampling actors, that fail as `failures` says, attempt after attempt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: list[Exception | None]) -> None:
        self._failures = failures
        self.messages: list[str] = []
        self.asked: list[tuple[int, int]] = []
        """(actor, prompt) in the order of asking, of the last attempt."""
        self.num_started = self.num_ended = 0
        monkeypatch.setattr(measure, "launched", self._launched)
        monkeypatch.setattr(measure, "get", self._get)

    def measure(self) -> HeldOutScores:
        launcher: Any = None
        return measure_teacher(
            launcher, 2, Prompts(), startup_seconds=1.0, call_seconds=1.0, message=self.messages.append
        )

    @contextmanager
    def _launched(self, launcher: object, count: int, *, message: object) -> Iterator[list[Any]]:
        self.num_started += 1
        self.asked = []
        try:
            yield [self._client(number) for number in range(count)]
        finally:
            self.num_ended += 1

    def _client(self, number: int) -> Any:
        def respond(task: Task, *, teacher: None, session: str, together: None) -> tuple[str, str]:
            self.asked.append((number, task.prompt_index))
            return "counts", f"answer to {task.prompt_index}"

        return SimpleNamespace(ready=lambda: "ready", respond=respond)

    def _get(self, references: Sequence[str], *, timeout_seconds: float, work: str) -> None:
        if references[0] == "ready" and (failure := self._failures.pop(0)):
            raise failure


def test_the_teacher_is_at_no_divergence_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its actors share the prompts of each batch, and end."""
    samplers = ScriptedSamplers(monkeypatch, [None])
    assert samplers.measure().reverse_kl == 0.0
    assert samplers.asked == [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]
    assert (samplers.num_started, samplers.num_ended) == (1, 1)


def test_where_one_of_the_teachers_actors_dies_all_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times at most; each is said, and none is left running."""
    samplers = ScriptedSamplers(monkeypatch, [RunError("it died"), RunError("again"), None])
    samplers.measure()
    assert samplers.messages == [f"the teacher's answers are drawn again: {why}" for why in ("it died", "again")]
    assert samplers.num_ended == 3
    with pytest.raises(RunError, match="third"):
        ScriptedSamplers(monkeypatch, [RunError("first"), RunError("second"), RunError("third")]).measure()


def test_bad_input_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that the engine refuses is refused each time."""
    samplers = ScriptedSamplers(monkeypatch, [InputError("no such model")])
    with pytest.raises(InputError, match="no such model"):
        samplers.measure()
    assert samplers.num_ended == 1
