"""The results on disk and on the terminal: one table a data file, and every response.

    FileResult -> results.json (every figure)   results.md and the terminal (tables)   responses.parquet (a row each)

The folder is written beside its name and renamed: it holds all three files, or does not exist.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_ray.evaluation.exposure_bias import ExposureBias
from minillm_ray.evaluation.summary import Drawn, FileResult, Measured
from minillm_ray.telemetry.console import format_cell, print_table
from minillm_ray.telemetry.files import folder_beside, replace_folder

if TYPE_CHECKING:
    import pyarrow

Cell = str | float | None

_LEGEND = """\
std is the standard deviation over seeds. With q the model and p the teacher, reverse KL is KL(q || p) and forward KL is
KL(p || q), both over the whole vocabulary at each state, mean over tokens; own text and teacher text are the responses
that q and p sampled, references are the right answers of the data (the first of a list). Rouge-L takes the best of a
list, distinct-n counts words at white space. Calibration error compares the probability of the most probable token with
how often it is the reference's, in 10 bins. Exposure bias: R and l eps are the forward KL added up over the first
tokens along q's and p's own responses, excess is 100 (R / l eps - 1), with its interval over resampled prompts."""


@dataclass(frozen=True)
class Table:
    """What is shown of one file: title, column names, rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


def tables(result: FileResult, seeds: Sequence[int]) -> list[Table]:
    """The table of a file, and with a teacher that of its exposure bias."""
    with_teacher = any(metric.teacher is not None for metric in result.metrics)
    columns = ("metric", "unit", "model", "std", *(("teacher", "std") if with_teacher else ()))
    rows: list[list[Cell]] = [
        [
            metric.label,
            metric.unit,
            *_cells(metric.model),
            *(_cells(metric.teacher) if with_teacher else ()),
        ]
        for metric in result.metrics
    ]
    size = f"{_count(result.num_rows, 'prompt')} x {_count(len(seeds), 'seed')}"
    found = [Table(f"{result.file}: {size}", columns, rows)]
    if result.exposure_bias is not None:
        found.append(_exposure_table(result.file, result.exposure_bias))
    return found


def print_tables(results: Sequence[FileResult], seeds: Sequence[int]) -> None:
    """Every table, to stdout."""
    for result in results:
        for table in tables(result, seeds):
            print_table(table.title, table.columns, table.rows)


def write_results(
    out: Path,
    settings: dict[str, Any],
    results: Sequence[FileResult],
    seeds: Sequence[int],
    drawn: Sequence[dict[str, Drawn]],
) -> None:
    """Write the three files into the folder `out`.

    settings  What was evaluated and how; stands first in results.json and results.md. drawn: for each file, "model"
              and perhaps "teacher" -> its responses.
    """
    from pyarrow import parquet

    content = {**settings, "seeds": list(seeds), "files": [_json_file(result) for result in results]}
    folder = folder_beside(out)
    try:
        (folder / "results.json").write_text(json.dumps(_no_nan(content), indent=2, ensure_ascii=False) + "\n")
        (folder / "results.md").write_text(_markdown(settings, results, seeds))
        parquet.write_table(_response_table(results, drawn), folder / "responses.parquet")
        replace_folder(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _cells(measured: Measured | None) -> list[Cell]:
    return [None, None] if measured is None else [_no_nan(measured.mean), _no_nan(measured.deviation)]


def _exposure_table(file: str, bias: ExposureBias) -> Table:
    last = len(bias.excess_percent)
    lengths = sorted({4**k for k in range(1, 10) if 4**k < last} | {last})
    rows: list[list[Cell]] = [
        [
            length,
            *(
                _no_nan(float(column[length - 1]))
                for column in (bias.student_error, bias.teacher_error, bias.excess_percent, bias.low, bias.high)
            ),
            int(bias.num_prompts[length - 1]),
        ]
        for length in lengths
    ]
    columns = ("first tokens", "R (nats)", "l eps (nats)", "excess (%)", "95 % from", "to", "prompts")
    return Table(f"{file}: exposure bias", columns, rows)


def _json_file(result: FileResult) -> dict[str, Any]:
    metrics = {
        metric.name: {
            who: {"mean": measured.mean, "std": measured.deviation, "values": list(measured.values)}
            for who, measured in (("model", metric.model), ("teacher", metric.teacher))
            if measured is not None
        }
        for metric in result.metrics
    }
    bias = result.exposure_bias
    return {
        "file": result.file,
        "rows": result.num_rows,
        "prompts_cut": result.num_prompts_cut,
        "references_truncated": result.num_references_truncated,
        "metrics": metrics,
        "ngrams": {who: {str(n): counts for n, counts in sizes.items()} for who, sizes in result.ngrams.items()},
        "exposure_bias": None if bias is None else {name: column.tolist() for name, column in asdict(bias).items()},
    }


def _markdown(settings: dict[str, Any], results: Sequence[FileResult], seeds: Sequence[int]) -> str:
    lines = [f"# Evaluation of {settings['model']}", ""]
    lines += [f"- {name}: {value}" for name, value in (settings | {"seeds": list(seeds)}).items() if value is not None]
    lines += ["", _LEGEND]
    for result in results:
        for table in tables(result, seeds):
            is_number = [not any(isinstance(row[k], str) for row in table.rows) for k in range(len(table.columns))]
            lines += ["", f"## {table.title}", "", _markdown_row(table.columns)]
            lines.append(_markdown_row(["---:" if number else ":---" for number in is_number]))
            lines += [_markdown_row([format_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _response_table(results: Sequence[FileResult], drawn: Sequence[dict[str, Drawn]]) -> "pyarrow.Table":
    import pyarrow

    schema = pyarrow.schema(
        {
            "file": pyarrow.string(),
            "drawn_by": pyarrow.string(),
            "row": pyarrow.int64(),
            "seed": pyarrow.int64(),
            "prompt": pyarrow.string(),
            "response": pyarrow.string(),
            "rouge_l": pyarrow.float64(),
            "num_tokens": pyarrow.int64(),
            "truncated": pyarrow.bool_(),
            "reverse_kl": pyarrow.float64(),
        }
    )
    rows = [
        {
            "file": result.file,
            "drawn_by": who,
            "row": response.row,
            "seed": response.seed,
            "prompt": response.prompt,
            "response": response.text,
            "rouge_l": response.rouge_l,
            "num_tokens": response.num_tokens,
            "truncated": response.truncated,
            "reverse_kl": None if response.divergence is None else float(response.divergence.reverse_kl.mean()),
        }
        for result, by_model in zip(results, drawn, strict=True)
        for who, one in by_model.items()
        for response in one.responses
    ]
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _no_nan(value: Any) -> Any:
    """The same tree with None for every nan: JSON has no such number, and a table shows "-"."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
