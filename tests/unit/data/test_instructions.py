"""Rows become examples; a row that is not an instruction is refused with its place."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.data.instructions import Example, read_examples

SHARED = Path(__file__).parents[4] / "shared/data"


def error_of(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_examples(path, **options)
    return str(caught.value)


def test_output_may_be_a_text_a_list_null_or_missing(write_rows):
    path = write_rows(
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": None, "output": ["c", "d"]},
        {"instruction": "a", "output": None},
        {"instruction": "a", "input": "", "output": ["", " \n", "c"]},
        {"instruction": "a", "more": 1},
    )
    assert read_examples(path) == [
        Example("a", "b", ("c",)),
        Example("a", "", ("c", "d")),
        Example("a", "", ()),
        Example("a", "", ("c",)),
        Example("a", "", ()),
    ]


def test_texts_are_kept_as_they_are_white_space_included(write_rows):
    assert read_examples(write_rows({"instruction": " a\n", "input": "\t", "output": " b "})) == [
        Example(" a\n", "\t", (" b ",))
    ]


def test_parquet_gives_the_same_examples_as_json_lines(write_rows, tmp_path):
    rows = [{"instruction": "a", "input": "b", "output": ["c"]}, {"instruction": "d", "input": None, "output": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_examples(tmp_path / "rows.parquet") == read_examples(write_rows(*rows))


def test_limit_reads_the_first_rows_and_does_not_look_further(write_rows):
    path = write_rows({"instruction": "a"}, {"instruction": "b"}, {"no": "instruction"})
    assert [example.instruction for example in read_examples(path, limit=2)] == ["a", "b"]


def test_a_limit_below_one_is_refused(write_rows):
    message = error_of(write_rows({"instruction": "a"}), limit=0)
    assert "limit of examples is 0; expected at least 1" in message
    assert "Leave it out" in message


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_data_set_is_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    message = error_of(path)
    assert f"{path} holds no rows; expected at least one" in message
    assert "Check the path" in message


def test_an_empty_parquet_file_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), path)
    assert "holds no rows" in error_of(path)


@pytest.mark.parametrize(
    ("row", "kind"), [([1], "a list"), ("text", "text"), (3, "a number"), (True, "a boolean"), (None, "null")]
)
def test_a_row_that_is_not_an_object_is_refused(write_rows, row, kind):
    path = write_rows({"instruction": "a"}, row)
    message = error_of(path)
    assert f"{path}:2: the row is {kind}; expected an object with the fields instruction, input and output" in message
    assert "Correct or remove the row" in message


@pytest.mark.parametrize("row", [{"prompt": "a", "output": "b"}, {"instruction": None}, {"instruction": " \n"}, {}])
def test_a_row_without_instruction_is_named_with_the_fields_it_has(write_rows, row):
    path = write_rows({"instruction": "a"}, row)
    message = error_of(path)
    assert f"{path}:2: no instruction" in message
    assert f"fields here: {', '.join(row) or '(none)'}" in message
    assert "expected the task as text in the field 'instruction'" in message
    assert "rename the field, or remove the row" in message


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"instruction": 5}, "the field 'instruction' is a number; expected text"),
        ({"instruction": ["a"]}, "the field 'instruction' is a list; expected text"),
        ({"instruction": "a", "input": {"b": 1}}, "the field 'input' is an object; expected text"),
        ({"instruction": "a", "output": 1.5}, "the field 'output' is a number; expected text or a list of texts"),
        ({"instruction": "a", "output": ["b", 2]}, "the field 'output' is a number; expected text or a list of texts"),
        ({"instruction": "a", "output": [None]}, "the field 'output' is null; expected text or a list of texts"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(write_rows, row, complaint):
    path = write_rows(row)
    message = error_of(path)
    assert f"{path}:1: {complaint}" in message
    assert "Correct or remove the row" in message


def test_a_field_of_the_wrong_type_in_parquet_is_refused_with_its_row(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": [1, 2]}), path)
    assert f"{path}, row 1: the field 'output' is a number" in error_of(path)


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "ab\\ud83d"}\n')
    message = error_of(path)
    assert f"{path}:1: the field 'instruction' has half a surrogate pair ('\\ud83d') at character 3" in message
    assert "Correct or remove the row" in message


@pytest.mark.parametrize("output", [None, "", "  ", [], [""]])
def test_a_row_without_output_is_refused_only_where_output_is_needed(write_rows, output):
    path = write_rows({"instruction": "a", "output": "b"}, {"instruction": "a", "output": output})
    assert len(read_examples(path)) == 2
    message = error_of(path, need_output=True)
    assert f"{path}:2: no output" in message
    assert "fields here: instruction, output" in message
    assert "expected the right answer as text, or a list of them, in the field 'output'" in message


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the instruction data is not beside the checkout")
def test_the_dolly_splits_are_read_whole():
    dev = read_examples(SHARED / "dolly_dev.jsonl", need_output=True)
    assert len(dev) == 1000
    assert all(first != second for first, second in pairwise(dev))
