"""The student of SeqKD is trained on the teacher's answers: on those, never on the data's own responses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from scripted.models import word_tokenizer
from scripted.run_context import scripted_context

from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import SeqKdPhase
from minillm_ray.data import Example, PromptSet, SupervisedSet, build_prompt_set, load_template
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.phases import seqkd
from minillm_ray.phases.run_context import Models
from minillm_ray.phases.seqkd import read_teacher_pairs, run_seqkd, write_responses

WORDS = ("<end>", "say", "a", "b", "c", "gold")
TOKENIZER = word_tokenizer(WORDS)
EXAMPLES = [Example(f"say {word}", "", ("gold",)) for word in ("a", "b", "c")]
ANSWERS = [([2, 2, 0], False), ([3, 0], False), ([4, 4], True)]
"""ids and whether truncated: a a <end>, b <end>, c c."""
PHASE = SeqKdPhase(kind="seqkd", epochs=1)


def prompt_set(examples: list[Example]) -> PromptSet:
    return build_prompt_set(examples, TOKENIZER, load_template("bare", TOKENIZER), 16)


PROMPTS = prompt_set(EXAMPLES)


def trajectories(count: int = 3) -> list[Trajectory]:
    return [
        Trajectory(
            prompt_index=index,
            prompt_ids=PROMPTS.prompt(index),
            response_ids=np.array(ids, np.int32),
            sampler_logprob=np.zeros(len(ids), np.float32),
            behavior_logprob=None,
            weight_version=np.zeros(len(ids), np.int32),
            truncated=truncated,
        )
        for index, (ids, truncated) in enumerate(ANSWERS[:count])
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SupervisedSet, Models]]:
    """Runs the phase with a teacher that gives ANSWERS; returns what the student was trained on, and the models."""
    context = scripted_context(tmp_path, prompts=prompt_set, train=EXAMPLES)
    found: dict[str, Any] = {}

    def draw(context: Any, phase: Any, teacher: str, prompts: PromptSet, path: Path, *, name: str) -> None:
        found["teacher"] = teacher
        write_responses(path, trajectories(len(prompts)), TOKENIZER)

    def fine_tune(context: Any, phase: Any, train: SupervisedSet, *, model: str, name: str) -> Path:
        found.update(train=train, model=model)
        return tmp_path / "best"

    monkeypatch.setattr(seqkd, "_draw_responses", draw)
    monkeypatch.setattr(seqkd, "fine_tune", fine_tune)

    def run(phase: SeqKdPhase = PHASE) -> tuple[SupervisedSet, Models, dict[str, Any]]:
        found.clear()
        models = run_seqkd(context, phase, Models("student", "teacher"), name="1-seqkd")
        return found["train"], models, found

    return run


def test_the_student_is_trained_on_what_the_teacher_said(run: Callable[..., Any]) -> None:
    """Prompt of the data, response of the teacher; the data's response differs and is nowhere."""
    train, models, found = run()
    assert (found["teacher"], found["model"]) == ("teacher", "student")
    assert models == Models(models.student, "teacher")
    gold = WORDS.index("gold")
    for index, (answer, _) in enumerate(ANSWERS):
        token_ids, prompt_length = train.example(index)
        np.testing.assert_array_equal(token_ids[:prompt_length], PROMPTS.prompt(index))
        assert token_ids[prompt_length:].tolist() == answer
        assert gold not in token_ids
    assert train.num_truncated == 1


def test_answers_that_are_there_are_not_drawn_again(run: Callable[..., Any]) -> None:
    """A run that resumes after the file was written trains on that file."""
    first, _, _ = run()
    again, _, found = run()
    assert "teacher" not in found
    assert again.fingerprint == first.fingerprint


def test_answers_to_other_prompts_are_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    """Of a file with one row too few; the message says what to remove."""
    run()
    path = tmp_path / "phases" / "1-seqkd" / "teacher_responses.parquet"
    write_responses(path, trajectories(2), TOKENIZER)
    with pytest.raises(RunError, match="does not answer the 3 prompts of this phase; remove it"):
        run()


def test_the_first_prompts_alone_are_answered(run: Callable[..., Any]) -> None:
    """train_rows counts for the teacher's work too."""
    train, _, _ = run(SeqKdPhase(kind="seqkd", train_rows=2))
    assert len(train) == 2


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    """The text without the end token, beside the ids that are trained."""
    path = tmp_path / "teacher_responses.parquet"
    write_responses(path, trajectories(), TOKENIZER)
    rows = parquet.read_table(path).to_pylist()
    assert [row["text"] for row in rows] == ["a a", "b", "c c"]
    assert [row["response_ids"] for row in rows] == [ids for ids, _ in ANSWERS]
    assert [row["truncated"] for row in rows] == [False, False, True]
    assert len(read_teacher_pairs(path, PROMPTS)) == 3
