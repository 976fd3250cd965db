"""Word-level distillation on a crew: which pairs the teacher scores, which the learner gets, and what a loss costs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripted.scored import supervised_set

from minillm_ray.learner.actor import LostInputs
from minillm_ray.learner.trainer import StepOutcome
from minillm_ray.phases import kd
from minillm_ray.phases.kd import Imitation, LearnerFell, as_trajectory
from minillm_ray.pipeline.protocols import Task
from minillm_ray.telemetry.reductions import Mean, Sum

TRAIN = supervised_set([(torch.arange(k, k + 5), 2) for k in range(6)])
HELD_OUT = supervised_set([(torch.arange(k, k + 4), 1) for k in range(10, 15)])
BATCHES = [[4, 1], [0, 5], [2, 3], [1, 0]]


class ScriptedCrew:
    """Scores what is ordered at its next turn; the learner is one rank that writes down what it is given.

    lost: answers of the learner that are LostInputs, by the number of the call.
    """

    def __init__(self, lost: tuple[int, ...] = ()) -> None:
        self.ordered: list[int] = []
        self.open: list[tuple[Any, Any]] = []
        self.steps: list[list[int]] = []
        self.ordered_before_step: list[int] = []
        self.measured: list[list[int]] = []
        self.saved: list[Path] = []
        self._lost, self._num_calls = lost, 0
        self.responses = SimpleNamespace(score=self._score, on_scored=None, on_lost=None)
        self.learner = SimpleNamespace(learner=self, on_lost=lambda: None)

    def _score(self, key: Any, task: Task, trajectory: Any) -> None:
        assert task.split != "train", "the payload must be hidden states, whatever the run sends otherwise"
        self.ordered.append(trajectory.prompt_index)
        self.open.append((key, trajectory))

    def turn_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            key, trajectory = self.open.pop(0)
            payload = f"states of {trajectory.prompt_index}"
            self.responses.on_scored(SimpleNamespace(key=key, trajectory=trajectory, payload=payload))

    def ask_learner(self, call: Callable[[Any], list[Any]], work: str) -> list[Any]:
        return call(self)

    def step(self, trajectories: list, payloads: list, pairs: list, pair_payloads: list) -> list[Any]:
        assert not trajectories
        assert not payloads
        rows = self._given(pairs, pair_payloads)
        if rows is None:
            return [LostInputs((0,), 1)]
        self.steps.append(rows)
        self.ordered_before_step.append(len(self.ordered))
        return [SimpleNamespace(metrics={"objective/loss/text": Sum(0.75)}, outcome=StepOutcome(1.0, 1e-3, True))]

    def text_loss(self, pairs: list, payloads: list) -> list[Any]:
        rows = self._given(pairs, payloads)
        if rows is None:
            return [LostInputs((0,), 1)]
        self.measured.append(rows)
        return [Mean(sum(map(float, rows)), float(len(rows)))]

    def save(self, folder: Path) -> list[Any]:
        self.saved.append(folder)
        return [None]

    def _given(self, pairs: list, payloads: list) -> list[int] | None:
        self._num_calls += 1
        rows = [pair.prompt_index for pair in pairs]
        assert payloads == [f"states of {row}" for row in rows]
        return None if self._num_calls - 1 in self._lost else rows


@pytest.fixture(autouse=True)
def objects_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object store: a reference is the object."""
    monkeypatch.setattr(kd.ray, "put", lambda value: value)


def imitation(crew: Any) -> Imitation:
    return Imitation(crew, TRAIN, HELD_OUT, BATCHES, validation_batch=2)


def test_a_pair_goes_as_a_trajectory_of_its_own_response() -> None:
    """Prompt and response of the data, token for token."""
    trajectory = as_trajectory(3, *TRAIN.example(3))
    assert trajectory.prompt_ids.tolist() == [3, 4]
    assert trajectory.response_ids.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(trajectory.token_ids, TRAIN.example(3)[0])


def test_every_step_trains_its_rows_while_the_next_ones_are_scored() -> None:
    """In the order given; the teacher is one batch ahead of the step, and no further."""
    crew = ScriptedCrew()
    trainer = imitation(crew)
    assert [trainer.step(rows) for rows in BATCHES] == [(0.75, StepOutcome(1.0, 1e-3, True))] * 4
    assert crew.steps == BATCHES
    assert crew.ordered_before_step == [6, 8, 8, 8]


def test_the_validation_loss_is_the_mean_over_the_held_out_tokens() -> None:
    """All of them, a batch at a time, between two steps without disturbing what is ahead."""
    crew = ScriptedCrew()
    trainer = imitation(crew)
    trainer.step(BATCHES[0])
    assert trainer.validation_loss() == pytest.approx(np.mean(range(5)))
    assert crew.measured == [[0, 1], [2, 3], [4]]
    trainer.step(BATCHES[1])
    assert crew.steps == BATCHES[:2]


def test_a_step_on_other_rows_is_an_error() -> None:
    """The teacher's states are of the batch that was announced."""
    with pytest.raises(ValueError, match=r"expected the next batch, \[4, 1\]"):
        imitation(ScriptedCrew()).step([1, 4])


def test_states_that_went_with_a_node_are_made_again() -> None:
    """The step, or the measurement, is then made with all of them."""
    crew = ScriptedCrew(lost=(0, 2))
    trainer = imitation(crew)
    trainer.step(BATCHES[0])
    assert crew.steps == BATCHES[:1]
    assert crew.ordered.count(4) == 2
    assert trainer.validation_loss() == pytest.approx(np.mean(range(5)))


def test_a_pair_that_is_lost_before_it_is_scored_is_ordered_again() -> None:
    """Its object was on a node that is gone."""
    crew = ScriptedCrew()
    trainer = imitation(crew)
    trainer._look_ahead()
    key, trajectory = crew.open.pop(0)
    crew.responses.on_lost(SimpleNamespace(key=key, trajectory=trajectory))
    trainer.step(BATCHES[0])
    assert crew.steps == BATCHES[:1]


def test_a_learner_that_comes_back_is_not_the_one_that_was_trained() -> None:
    """Its state is that of a checkpoint: whoever trained the other has to begin there."""
    crew = ScriptedCrew()
    trainer = imitation(crew)
    trainer.step(BATCHES[0])
    crew.learner.learner = other = SimpleNamespace()
    crew.ask_learner = lambda call, work: call(other)
    with pytest.raises(LearnerFell):
        trainer.step(BATCHES[1])
    with pytest.raises(LearnerFell):
        trainer.save(Path("best"))


def test_the_student_is_saved_where_it_is_asked_for(tmp_path: Path) -> None:
    """By every rank of the learner."""
    crew = ScriptedCrew()
    imitation(crew).save(tmp_path / "best")
    assert crew.saved == [tmp_path / "best"]
