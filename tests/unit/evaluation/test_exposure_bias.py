"""ExAccErr against sums done by hand, and what its interval must do."""

import numpy as np
import pytest

from minillm_ray.evaluation.exposure_bias import exposure_bias


def errors(*prompts: list[list[float]]) -> list[list[np.ndarray]]:
    return [[np.array(response) for response in prompt] for prompt in prompts]


def test_excess_over_lengths_by_hand() -> None:
    """R = 1, 1 + 3, 1 + 3 + 8; l eps = 1, 1 + 2, 1 + 2 + 3: excess 0, 1/3 and 1."""
    found = exposure_bias(errors([[1.0, 3.0, 8.0]]), errors([[1.0, 2.0, 3.0]]))
    assert found.student_error.tolist() == [1.0, 4.0, 12.0]
    assert found.teacher_error.tolist() == [1.0, 3.0, 6.0]
    assert found.excess_percent.tolist() == pytest.approx([0.0, 100 / 3, 100.0])


def test_a_mean_is_over_the_responses_alive_then_over_the_prompts_alive() -> None:
    """Slot 1: prompt 0 has (2 + 4) / 2 = 3 and prompt 1 has 7, so 5. Slot 2: only one response of prompt 0 lives: 9."""
    student = errors([[1.0, 2.0, 9.0], [1.0, 4.0], [1.0]], [[1.0, 7.0]])
    found = exposure_bias(student, errors([[1.0] * 3], [[1.0] * 3]))
    assert found.student_error.tolist() == [1.0, 6.0, 15.0]
    assert found.num_prompts.tolist() == [2, 2, 1]


def test_lengths_end_where_one_side_has_no_response_left() -> None:
    found = exposure_bias(errors([[1.0, 2.0, 3.0]]), errors([[1.0, 2.0]]))
    assert len(found.excess_percent) == len(found.low) == len(found.num_prompts) == 2


def test_equal_errors_have_no_excess_and_no_interval() -> None:
    """Whatever prompts are resampled."""
    same = errors([[0.1, 0.7], [0.1]], [[0.4, 0.2, 0.3]], [[0.5, 0.5]])
    found = exposure_bias(same, same)
    for column in (found.excess_percent, found.low, found.high):
        np.testing.assert_allclose(column, 0.0, atol=1e-12)


def test_the_interval_spans_what_resampling_two_prompts_can_give() -> None:
    """Excess of prompt 0 alone 100 %, of prompt 1 alone 0 %, of both 50 %: a quarter of the resamples at each end."""
    found = exposure_bias(errors([[1.0, 3.0]], [[1.0, 1.0]]), errors([[1.0, 1.0]], [[1.0, 1.0]]))
    assert (found.low[1], found.excess_percent[1], found.high[1]) == pytest.approx((0.0, 50.0, 100.0))


def test_a_teacher_without_any_error_leaves_the_excess_undefined() -> None:
    found = exposure_bias(errors([[0.0, 0.0]]), errors([[0.0, 0.0]]))
    assert np.isnan(found.excess_percent).all() and np.isnan(found.low).all()


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        (errors([[1.0]]), errors([[1.0]], [[1.0]]), "1 prompts .* 2"),
        ([], [], "at least one"),
        (errors([]), errors([[1.0]]), "no response"),
        (errors([[]]), errors([[1.0]]), "an empty one"),
    ],
)
def test_missing_responses_are_refused(student: list, teacher: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        exposure_bias(student, teacher)
