"""Every source gives its rows in order, and every broken source says where, what was expected, and what to do."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.data.rows import open_rows


def rows_of(source):
    return [row for _, row in open_rows(source)]


def error_of(source) -> str:
    with pytest.raises(InputError) as caught:
        list(open_rows(source))
    return str(caught.value)


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"instruction": ["a", "b", "c"], "output": [["x"], ["y", "z"], []], "id": [1, 2, 3]}), path)
    return path


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: records what was asked for, and answers or raises as told."""

    class Hub:
        def __init__(self):
            self.asked = []
            self.answer = None

        def load_dataset(self, name, split):
            self.asked.append((name, split))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.JSONL"])
def test_json_lines_come_in_order_with_file_and_line_and_without_blank_lines(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'{"instruction": "a"}\n\n  \t\r\n{"instruction": "b"}\r\n[1]')
    assert list(open_rows(path)) == [
        (f"{path}:1", {"instruction": "a"}),
        (f"{path}:4", {"instruction": "b"}),
        (f"{path}:5", [1]),
    ]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert rows_of(path) == [{"instruction": "a\u2028b\x85c"}]


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "a"}\n')
    assert rows_of(path) == [{"instruction": "a"}]


def test_a_missing_file_is_named_with_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error_of("data/train.jsonl")
    assert "data/train.jsonl does not exist" in message
    assert f"looked for {tmp_path / 'data/train.jsonl'}" in message
    assert "expected a .jsonl, .json or .parquet file" in message
    assert "Correct the path" in message


@pytest.mark.parametrize("source", ["/none/such.parquet", "./a/b", "some_name", "a/b/c"])
def test_what_cannot_be_a_hub_id_is_looked_for_on_disk(source, hub):
    assert "does not exist" in error_of(source)
    assert hub.asked == []


def test_a_folder_is_not_a_file(tmp_path):
    message = error_of(tmp_path)
    assert f"{tmp_path} is a folder" in message
    assert "Give the path of one file in it" in message


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction\n")
    message = error_of(path)
    assert "ends in .csv" in message
    assert ".jsonl, .json (one object a line) or .parquet" in message
    assert "Convert or rename" in message


def test_a_broken_line_is_named_by_file_line_and_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a"}\n\n{"instruction": "b"\n')
    message = error_of(path)
    assert f"{path}:3: broken JSON at column 20 (Expecting ',' delimiter)" in message
    assert '{"instruction": "b"' in message
    assert "expected one JSON object on each line" in message
    assert "Correct or remove the line" in message


def test_a_broken_long_line_is_shortened_in_the_message(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "' + "long " * 1000)
    assert len(error_of(path)) < 500


def test_a_json_array_is_told_how_to_become_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"instruction": "a"}\n]')
    message = error_of(path)
    assert f"{path}:1: the file opens a JSON array" in message
    assert f"jq -c '.[]' {path}" in message


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a"}\n{"instruction": "caf\xe9"}\n')
    message = error_of(path)
    assert f"{path}:2: byte 0xe9 at position 21" in message
    assert "expected UTF-8" in message
    assert "iconv -t UTF-8" in message


def test_parquet_rows_come_in_order_with_only_the_fields_that_are_read(parquet):
    assert list(open_rows(parquet)) == [
        (f"{parquet}, row 1", {"instruction": "a", "output": ["x"]}),
        (f"{parquet}, row 2", {"instruction": "b", "output": ["y", "z"]}),
        (f"{parquet}, row 3", {"instruction": "c", "output": []}),
    ]


def test_parquet_without_the_column_names_the_columns_it_has(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "response": ["b"]}), path)
    message = error_of(path)
    assert f"{path} has no column 'instruction'" in message
    assert "prompt, response" in message
    assert "Rename the column" in message


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"PAR1" * 9]
)
def test_a_damaged_parquet_file_is_named(parquet, damage):
    parquet.write_bytes(damage(parquet.read_bytes()))
    message = error_of(parquet)
    assert f"{parquet} cannot be read as Parquet" in message
    assert "expected a complete Parquet file" in message
    assert "copy or write it again" in message


def test_parquet_whose_pages_are_damaged_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"instruction": [f"instruction number {i}" for i in range(5000)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    whole[200:4000] = bytes(3800)
    path.write_bytes(whole)
    assert f"{path} cannot be read as Parquet" in error_of(path)


def test_parquet_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    not_utf8 = pa.array([b"caf\xe9"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"instruction": not_utf8}), path)
    assert f"{path} cannot be read as Parquet" in error_of(path)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("owner/name", ("owner/name", "train")),
        ("owner/name:validation", ("owner/name", "validation")),
        ("owner/na.me-1:train[:10]", ("owner/na.me-1", "train[:10]")),
    ],
)
def test_a_hub_id_is_loaded_with_its_split(hub, source, asked):
    hub.answer = datasets.Dataset.from_dict({"instruction": ["a"], "input": ["b"], "other": [1]})
    assert list(open_rows(source)) == [(f"{asked[0]}:{asked[1]}, row 1", {"instruction": "a", "input": "b"})]
    assert hub.asked == [asked]


def test_a_file_that_looks_like_a_hub_id_is_the_file(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/name.jsonl").write_text('{"instruction": "a"}\n')
    assert rows_of("owner/name.jsonl") == [{"instruction": "a"}]
    assert hub.asked == []


def test_a_hub_id_that_cannot_be_loaded_says_to_give_a_local_path(hub):
    hub.answer = ConnectionError("Couldn't reach the hub\nmore lines")
    message = error_of("owner/name:test")
    assert "owner/name, split test, cannot be loaded" in message
    assert "ConnectionError: Couldn't reach the hub" in message
    assert "more lines" not in message
    assert "give its local path" in message


def test_a_hub_data_set_without_the_column_names_its_columns(hub):
    hub.answer = datasets.Dataset.from_dict({"question": ["a"]})
    message = error_of("owner/name")
    assert "owner/name:train has no column 'instruction'; its columns are question" in message
    assert "renamed to instruction, input and output" in message
