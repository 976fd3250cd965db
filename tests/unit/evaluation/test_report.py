"""The three files of an evaluation, and its tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from minillm_ray.evaluation.exposure_bias import exposure_bias
from minillm_ray.evaluation.report import print_tables, tables, write_results
from minillm_ray.evaluation.summary import Drawn, FileResult, Measured, Metric, ScoredResponse, SequenceDivergence

SEEDS = [10, 20]
SETTINGS = {"model": "students/a", "teacher": None, "temperature": 1.0}


def result(file: str = "b.jsonl", *, with_teacher: bool = True) -> FileResult:
    """Rouge-L over two seeds, a distinct-4 that is not defined, a loss of one value."""
    teacher = Measured((80.0, 80.0)) if with_teacher else None
    errors = [[np.linspace(1.0, 2.0, 20)]]
    return FileResult(
        file=file,
        num_rows=1,
        num_prompts_cut=0,
        num_references_truncated=0,
        metrics=(
            Metric("rouge_l", "Rouge-L", "%", Measured((30.0, 60.0)), teacher),
            Metric("distinct_4", "distinct-4", "%", Measured((float("nan"), float("nan"))), teacher),
            Metric("reference_loss", "loss on references", "nats/token", Measured((3.5,))),
        ),
        ngrams={"model": {1: [(2, 4), (4, 4)]}},
        exposure_bias=exposure_bias(errors, errors) if with_teacher else None,
    )


def drawn() -> dict[str, Drawn]:
    divergence = SequenceDivergence(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    scored = ScoredResponse(0, 10, "say a\n=>", "a | b\nc", 30.0, 2, True, divergence)
    unscored = ScoredResponse(0, 20, "say a\n=>", "", 60.0, 1, False, None)
    return {"model": Drawn([scored, unscored], [])}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    out = tmp_path / "new" / "out"
    write_results(out, SETTINGS, [result(), result("c.jsonl")], SEEDS, [drawn(), drawn()])
    return out


def test_a_folder_holds_three_files_and_nothing_stays_beside_it(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["responses.parquet", "results.json", "results.md"]
    assert list(written.parent.iterdir()) == [written]


def test_json_has_every_figure_and_null_for_what_is_undefined(written: Path) -> None:
    content = json.loads((written / "results.json").read_text())
    assert (content["model"], content["seeds"]) == ("students/a", SEEDS)
    first, second = content["files"]
    assert (first["file"], second["file"], first["rows"]) == ("b.jsonl", "c.jsonl", 1)
    assert first["metrics"]["rouge_l"]["model"]["mean"] == 45.0
    assert first["metrics"]["rouge_l"]["model"]["values"] == [30.0, 60.0]
    assert first["metrics"]["rouge_l"]["teacher"] == {"mean": 80.0, "std": 0.0, "values": [80.0, 80.0]}
    assert first["metrics"]["distinct_4"]["model"] == {"mean": None, "std": None, "values": [None, None]}
    assert first["metrics"]["reference_loss"] == {"model": {"mean": 3.5, "std": None, "values": [3.5]}}
    assert first["ngrams"] == {"model": {"1": [[2, 4], [4, 4]]}}
    assert len(first["exposure_bias"]["excess_percent"]) == 20


def test_parquet_has_a_row_for_each_response_of_each_file(written: Path) -> None:
    rows = parquet.read_table(written / "responses.parquet").to_pylist()
    assert [row["file"] for row in rows] == ["b.jsonl"] * 2 + ["c.jsonl"] * 2
    assert rows[0] == {
        "file": "b.jsonl",
        "drawn_by": "model",
        "row": 0,
        "seed": 10,
        "prompt": "say a\n=>",
        "response": "a | b\nc",
        "rouge_l": 30.0,
        "num_tokens": 2,
        "truncated": True,
        "reverse_kl": 1.5,
    }
    assert rows[1]["reverse_kl"] is None


def test_markdown_has_a_table_a_file_with_as_many_cells_in_each_row(written: Path) -> None:
    lines = (written / "results.md").read_text().splitlines()
    assert lines[0] == "# Evaluation of students/a"
    assert "## b.jsonl: 1 prompt x 2 seeds" in lines and "## c.jsonl: 1 prompt x 2 seeds" in lines
    assert "| Rouge-L | % | 45.00 | 21.21 | 80.00 | 0.000 |" in lines
    assert "| distinct-4 | % | - | - | 80.00 | 0.000 |" in lines
    assert "- teacher: None" not in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {7, 8}  # six columns, and seven of exposure bias


def test_without_a_teacher_there_is_no_column_and_no_second_table() -> None:
    (table,) = tables(result(with_teacher=False), SEEDS)
    assert table.columns == ("metric", "unit", "model", "std")


def test_exposure_bias_is_shown_at_a_few_lengths_and_at_the_last() -> None:
    """Powers of four, then all 20 tokens."""
    _, bias = tables(result(), SEEDS)
    assert [row[0] for row in bias.rows] == [4, 16, 20]


def test_what_is_printed_is_each_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([result(with_teacher=False)], [10])
    printed = capsys.readouterr().out
    assert printed.startswith("b.jsonl: 1 prompt x 1 seed")
    assert "45.00" in printed
