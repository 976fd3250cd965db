"""Rows of an instruction data set, from wherever they are kept.

    JSON lines | Parquet | Hugging Face id  ->  (where, row), one at a time, in the order of the source

`where` is what a person needs to find the row again: file and line, file and row, or data set and row, counted
from 1. Whatever cannot be read is an InputError that names it. Not here: what a row must hold (instructions).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from minillm_ray.config.errors import InputError

Row = tuple[str, object]
"""Where the row stands, and the row as it was read."""

FIELDS = ("instruction", "input", "output")
"""The only columns that are read."""

JSON_SUFFIXES = (".jsonl", ".json")
PARQUET_SUFFIX = ".parquet"
_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<split>.+))?")


def open_rows(source: str | Path) -> Iterator[Row]:
    """The rows of a local file or a Hugging Face data set, lazily.

    source  A path ending in .jsonl, .json (one object a line) or .parquet; or `owner/name`, `owner/name:split`
            (split `train` if not named). What exists on disk is a path; what ends like a data file is a path too.

    Raises InputError, here or while iterating, if the source is missing, of another kind, or broken.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    hub_id = _HUB_ID.fullmatch(str(source))
    if hub_id and suffix not in (*JSON_SUFFIXES, PARQUET_SUFFIX) and not path.exists():
        return hub_rows(hub_id["name"], hub_id["split"] or "train")
    require_file(path, expected="a .jsonl, .json or .parquet file, or a Hugging Face id such as owner/name:split")
    if suffix in JSON_SUFFIXES:
        return json_rows(path)
    if suffix == PARQUET_SUFFIX:
        return parquet_rows(path)
    raise InputError(
        f"{source} ends in {path.suffix or 'no suffix'}; expected a data file ending in .jsonl, .json (one object a "
        "line) or .parquet. Convert or rename the file"
    )


def require_file(path: Path, *, expected: str) -> None:
    """Raises InputError unless the path is a file, naming the absolute path that was looked for."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected {expected}. Give the path of one file in it")
    if not path.is_file():
        raise InputError(f"{path} does not exist (looked for {path.absolute()}); expected {expected}. Correct the path")


def utf8_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end) of every line; a byte order mark is dropped.

    Raises InputError at the first line that is not UTF-8.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: byte {raw[error.start]:#04x} at position {error.start + 1} of the line is not "
                    "UTF-8; expected UTF-8 text. Save the file as UTF-8 (iconv -t UTF-8)"
                ) from error
            yield number, text.rstrip("\r\n")


def json_rows(path: Path) -> Iterator[Row]:
    """One row for each line that is not blank. Raises InputError at a line that is not JSON."""
    first = True
    for number, text in utf8_lines(path):
        if not text.strip():
            continue
        if first and text.lstrip().startswith("["):
            raise InputError(
                f"{path}:{number}: the file opens a JSON array; expected one JSON object a line. Convert it with: "
                f"jq -c '.[]' {path} > rows.jsonl"
            )
        first = False
        try:
            yield f"{path}:{number}", json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: broken JSON at column {error.colno} ({error.msg}): {_shorten(text)}; expected one "
                "JSON object on each line. Correct or remove the line"
            ) from error


def parquet_rows(path: Path) -> Iterator[Row]:
    """One row for each Parquet row, read in record batches. Raises InputError if the file is not sound."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "instruction" not in names:
                raise InputError(
                    f"{path} has no column 'instruction'; its columns are {', '.join(names) or '(none)'}. Rename the "
                    "column that holds the task to 'instruction' ('input' and 'output' likewise)"
                )
            number = 0
            for batch in file.iter_batches(columns=[name for name in FIELDS if name in names]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{where}, row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({_first_line(error)}); expected a complete Parquet file. It is "
            "truncated, damaged or of another format: copy or write it again"
        ) from error


def hub_rows(name: str, split: str) -> Iterator[Row]:
    """One row for each row of a Hugging Face data set. Raises InputError if it cannot be loaded."""
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    # The hub client raises errors of many packages (connection, missing set, unknown split, script refused); each
    # means the same to the user, and the cause is kept.
    except Exception as error:
        raise InputError(
            f"{name}, split {split}, cannot be loaded from Hugging Face ({type(error).__name__}: "
            f"{_first_line(error)}), and {name} is no local file; expected the id of a data set and one of its splits. "
            "Without network, download it elsewhere as .jsonl or .parquet and give its local path"
        ) from error
    columns = list(rows.column_names)
    if "instruction" not in columns:
        raise InputError(
            f"{name}:{split} has no column 'instruction'; its columns are {', '.join(columns)}. Save it as .jsonl with "
            "the columns renamed to instruction, input and output, and give that path"
        )
    for number, row in enumerate(rows.select_columns([field for field in FIELDS if field in columns]), start=1):
        yield f"{name}:{split}, row {number}", row


def _first_line(error: BaseException) -> str:
    return _shorten((str(error).splitlines() or [type(error).__name__])[0])


def _shorten(text: str, width: int = 120) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
