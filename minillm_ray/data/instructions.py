"""Instruction examples, checked.

    source -> rows -> Example(instruction, input, references)

Invariant: an Example that exists can be rendered and tokenised. Every field has its type, the instruction is not
blank, and every text can be written as UTF-8. Not here: reading files (rows), templates, tokens.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minillm_ray.config.errors import InputError
from minillm_ray.data.rows import open_rows


@dataclass(frozen=True)
class Example:
    """One task and the answers that count as right."""

    instruction: str
    """The task. Never blank."""
    input: str
    """Further context; empty for none."""
    references: tuple[str, ...]
    """Right answers, none blank. The first is what supervised training learns; Rouge-L takes the best of them."""


def read_examples(source: str | Path, *, limit: int | None = None, need_output: bool = False) -> list[Example]:
    """The examples of a data set, in its order.

    source       A .jsonl, .json (one object a line) or .parquet file with the fields instruction, input (may be
                 missing) and output (a string or a list of strings; may be missing); or a Hugging Face id
                 `owner/name` or `owner/name:split`.
    limit        Read only the first so many; None reads all. Rows after them are not looked at.
    need_output  Every row must have a right answer, as supervised training and Rouge-L need.

    Raises InputError for a source that cannot be read, is empty, or has a row that is not as above.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of examples is {limit}; expected at least 1. Leave it out to read all of {source}")
    examples = [_example(row, where=where, need_output=need_output) for where, row in islice(open_rows(source), limit)]
    if not examples:
        raise InputError(f"{source} holds no rows; expected at least one with an instruction. Check the path")
    return examples


def _example(row: object, *, where: str, need_output: bool) -> Example:
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: the row is {_kind(row)}; expected an object with the fields instruction, input and output. "
            "Correct or remove the row"
        )
    instruction = _text(row, "instruction", where)
    if not instruction.strip():
        fields = ", ".join(map(str, row)) or "(none)"
        raise InputError(
            f"{where}: no instruction (missing or blank; fields here: {fields}); expected the task as text in the "
            "field 'instruction'. Fill it in, rename the field, or remove the row"
        )
    references = _references(row, where)
    if need_output and not references:
        fields = ", ".join(map(str, row))
        raise InputError(
            f"{where}: no output (missing, empty or blank; fields here: {fields}); expected the right answer as text, "
            "or a list of them, in the field 'output'. Fill it in, rename the field, or remove the row"
        )
    return Example(instruction=instruction, input=_text(row, "input", where), references=references)


def _text(row: dict[object, object], field: str, where: str) -> str:
    """The field as text; a missing or null field is empty."""
    value = row.get(field)
    if value is None:
        return ""
    return _require_text(value, field, where)


def _references(row: dict[object, object], where: str) -> tuple[str, ...]:
    value = row.get("output")
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    texts = [_require_text(text, "output", where) for text in values]
    return tuple(text for text in texts if text.strip())


def _require_text(value: object, field: str, where: str) -> str:
    expected = "text or a list of texts" if field == "output" else "text"
    if not isinstance(value, str):
        raise InputError(
            f"{where}: the field '{field}' is {_kind(value)}; expected {expected}. Correct or remove the row"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the field '{field}' has half a surrogate pair ({value[error.start]!a}) at character "
            f"{error.start + 1}; expected text that UTF-8 can write. Correct or remove the row"
        ) from error
    return value


def _kind(value: object) -> str:
    """The value in the words of JSON, for a message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
