"""What the phases refuse among their own settings, and what they are called."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from minillm_ray.config.phases import Phase, phase_name, trains_student

PHASE: TypeAdapter[Any] = TypeAdapter(Phase)
MINILLM = {"kind": "minillm", "steps": 16, "rollouts": 8, "minibatch": 4, "inner_epochs": 2}


def refusal(**settings: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        PHASE.validate_python(settings)
    return str(caught.value)


def test_word_level_distillation_leans_on_the_teacher_by_half_unless_told_otherwise() -> None:
    """kd_ratio 0.5, as in the paper's baseline."""
    assert PHASE.validate_python({"kind": "kd"}).kd_ratio == 0.5


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_without_the_teacher_it_is_not_word_level_distillation(ratio: float) -> None:
    """0 is sft, and above 1 cross-entropy would be maximised."""
    assert "kd_ratio" in refusal(kind="kd", kd_ratio=ratio)


@pytest.mark.parametrize("kind", ["kd", "seqkd"])
def test_the_baselines_train_the_student_and_take_no_model(kind: str) -> None:
    """A key that would be ignored is refused."""
    assert "model" in refusal(kind=kind, model="student")


def test_a_phase_is_measured_between_two_rounds() -> None:
    """With 4 steps a round every 6 would fall into one; the next multiple is named."""
    assert "evaluate_every=6 is not a multiple of the 4 optimizer steps of one round" in refusal(
        **MINILLM, evaluate_every=6
    )
    assert "set evaluate_every=8" in refusal(**MINILLM, evaluate_every=6)
    assert PHASE.validate_python(MINILLM | {"evaluate_every": 8}).evaluate_every == 8


def test_the_best_of_one_student_is_no_choice() -> None:
    """select=rouge_l says how many are measured, or is refused."""
    assert "set evaluate_every, or select=last" in refusal(**MINILLM, select="rouge_l")
    assert PHASE.validate_python(MINILLM).select == "last"


@pytest.mark.parametrize(
    ("phase", "name", "student"),
    [
        ({"kind": "sft", "model": "teacher"}, "2-sft-teacher", False),
        ({"kind": "sft", "model": "student"}, "2-sft-student", True),
        ({"kind": "kd"}, "2-kd", True),
        ({"kind": "seqkd"}, "2-seqkd", True),
        (MINILLM, "2-minillm", True),
    ],
)
def test_a_phase_has_a_name_and_a_model_that_it_trains(phase: dict[str, Any], name: str, student: bool) -> None:
    """The name is that of its folder; all but one kind train the student."""
    found = PHASE.validate_python(phase)
    assert phase_name(2, found) == name
    assert trains_student(found) is student
