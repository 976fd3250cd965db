"""The page of a comparison: every method and seed is on it, and text from outside is text."""

import json
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.report.comparison import render_comparison, write_comparison_report

SCORES = {"reverse_kl": 0.5, "rouge_l": 40.0, "response_tokens": 12.0, "truncated_fraction": 0.0}
COLUMNS = ("method", "reverse KL")
ROWS = [["teacher", 0.0], ["sft", 0.5], ["mini & more", None]]


def tree() -> dict[str, Any]:
    runs = [{"seed": seed, "folder": f"sft/seed-{seed}", "steps": 3, "scores": SCORES} for seed in (1, 2)]
    return {
        "teacher": SCORES | {"reverse_kl": 0.0},
        "student": None,
        "methods": [
            {"name": "sft", "wanted": 2, "runs": runs, "scores": {}},
            {"name": "mini & more", "wanted": 2, "runs": [], "scores": {}},
        ],
    }


def render(some: dict[str, Any]) -> str:
    return render_comparison("out", some, COLUMNS, ROWS, written=0.0)


def test_the_table_is_there_and_each_run_is_a_dot_and_a_link() -> None:
    """Three figures, in each a dot for the teacher and one for every seed."""
    page = render(tree())
    for text in ("<td>sft</td>", "mini &amp; more", 'href="sft/seed-1/report.html"', 'href="sft/seed-2/report.html"'):
        assert text in page
    assert page.count("<svg") == 3
    assert page.count("<circle") == 3 * (1 + 2)
    assert "2 of 4 runs" in page


def test_a_comparison_with_nothing_measured_yet_is_a_page_too() -> None:
    """While what all runs share is being made."""
    some = tree() | {"teacher": None}
    some["methods"][0]["runs"] = []
    assert render(some).count("nothing measured yet") == 3


def test_a_score_that_was_not_measured_has_no_dot() -> None:
    """Rouge-L where the data has no right answers."""
    some = tree() | {"teacher": None}
    for run in some["methods"][0]["runs"]:
        run["scores"] = SCORES | {"rouge_l": None}
    page = render(some)
    assert page.count("nothing measured yet") == 1
    assert page.count("<circle") == 2 * 2


def test_the_page_is_written_beside_its_numbers(tmp_path: Path) -> None:
    """A folder without them is no comparison."""
    with pytest.raises(InputError, match=r"has no compare\.json"):
        write_comparison_report(tmp_path, COLUMNS, ROWS)
    (tmp_path / "compare.json").write_text(json.dumps(tree()))
    path = write_comparison_report(tmp_path, COLUMNS, ROWS, clock=lambda: 0.0)
    assert path == tmp_path / "report.html"
    assert "1970-01-01" in path.read_text()
