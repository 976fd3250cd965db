"""Rows of the closing table that are known already, and the table as a file keeps it."""

from dataclasses import asdict
from pathlib import Path

import pytest

from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.phases.closing import ClosingScores, KnownScores, read_scores

ROW = HeldOutScores(reverse_kl=0.25, rouge_l=None, response_tokens=12.5, truncated_fraction=0.0)
OTHER = HeldOutScores(reverse_kl=1.0 / 3.0, rouge_l=41.0, response_tokens=1.0, truncated_fraction=0.1)


def test_what_was_measured_is_known_to_the_run_that_resumes(tmp_path: Path) -> None:
    """Number for number, in the order in which it was measured; what was not, is not."""
    path = tmp_path / "phases" / "3-minillm" / "scores.json"
    first = KnownScores(path)
    assert dict(first.rows) == {}
    first.put("teacher", ROW)
    first.put("before", OTHER)
    assert list(KnownScores(path).rows.items()) == [("teacher", ROW), ("before", OTHER)]


@pytest.mark.parametrize("teacher", [None, ROW])
@pytest.mark.parametrize("before", [None, OTHER])
def test_the_table_of_a_finished_phase_is_read_as_it_was(
    teacher: HeldOutScores | None, before: HeldOutScores | None
) -> None:
    """Also where a row was not wanted."""
    scores = ClosingScores(teacher, before, OTHER)
    assert read_scores(asdict(scores)) == scores
