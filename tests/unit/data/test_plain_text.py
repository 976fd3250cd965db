"""Chunks laid end to end are the documents, each with its EOS."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm_ray.config.errors import InputError
from minillm_ray.data.plain_text import read_chunks

SHARED = Path(__file__).parents[4] / "shared/data"
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=20), max_size=8)


@pytest.fixture
def text_file(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        return path

    return write


def error_of(path, tokenizer, chunk_tokens=8) -> str:
    with pytest.raises(InputError) as caught:
        read_chunks(path, tokenizer, chunk_tokens=chunk_tokens)
    return str(caught.value)


@given(lines=LINES, chunk_tokens=st.integers(2, 9))
@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_end_to_end_are_the_documents_with_their_eos(tokenizer, text_file, lines, chunk_tokens):
    documents = [line for line in ["first", *lines] if line.strip()]
    path = text_file("\n".join(["first", *lines]).encode())
    chunks = read_chunks(path, tokenizer, chunk_tokens=chunk_tokens)
    expected = [i for text in documents for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    if len(expected) % chunk_tokens == 1:
        expected.pop()
    assert chunks.token_ids.tolist() == expected
    lengths = [len(chunks.chunk(i)) for i in range(len(chunks))]
    assert all(length == chunk_tokens for length in lengths[:-1])
    assert 2 <= lengths[-1] <= chunk_tokens
    assert chunks.num_documents == len(documents)


def test_more_documents_than_are_tokenised_at_once_stay_in_order(tokenizer, text_file):
    chunks = read_chunks(text_file(b"".join(b"%d\n" % i for i in range(2500))), tokenizer, chunk_tokens=64)
    assert chunks.num_documents == 2500
    assert tokenizer.decode(chunks.token_ids).split("<|endoftext|>")[:-1] == [str(i) for i in range(2500)]


def test_line_ends_and_the_byte_order_mark_are_no_text(tokenizer, text_file):
    chunks = read_chunks(text_file(b"\xef\xbb\xbfcat\r\n\r\n \ndog"), tokenizer, chunk_tokens=64)
    assert tokenizer.decode(chunks.chunk(0)) == "cat<|endoftext|>dog<|endoftext|>"


def test_chunks_are_read_only_int32_and_survive_pickling(tokenizer, text_file):
    chunks = read_chunks(text_file(b"cat dog\n" * 20), tokenizer, chunk_tokens=8)
    again = pickle.loads(pickle.dumps(chunks))
    assert again.chunk(1).tolist() == chunks.chunk(1).tolist()
    assert again.fingerprint == chunks.fingerprint
    assert chunks.token_ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        chunks.chunk(0)[0] = 1


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_outside_the_chunks_is_an_error(tokenizer, text_file, index):
    with pytest.raises(IndexError, match=f"chunk {index} of 1"):
        read_chunks(text_file(b"cat\n"), tokenizer, chunk_tokens=64).chunk(index)


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_a_file_without_text_is_refused(tokenizer, text_file, content):
    path = text_file(content)
    message = error_of(path, tokenizer)
    assert f"{path} has 0 tokens; expected at least 2, one document a line" in message
    assert "Check that the file is not empty" in message


def test_bytes_that_are_not_utf8_are_named_by_line(tokenizer, text_file):
    path = text_file(b"cat\ndog \xff\n")
    message = error_of(path, tokenizer)
    assert f"{path}:2: byte 0xff at position 5" in message
    assert "Save the file as UTF-8" in message


def test_a_missing_file_is_named(tokenizer, tmp_path):
    message = error_of(tmp_path / "none.txt", tokenizer)
    assert f"{tmp_path / 'none.txt'} does not exist" in message
    assert "expected a UTF-8 text file, one document a line" in message


def test_a_chunk_of_one_token_would_train_nothing(tokenizer, text_file):
    message = error_of(text_file(b"cat\n"), tokenizer, chunk_tokens=1)
    assert "chunk_tokens is 1; expected at least 2" in message
    assert "Raise chunk_tokens" in message


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the plain text is not beside the checkout")
def test_wikitext_gives_full_chunks(tokenizer):
    chunks = read_chunks(SHARED / "plain_text.txt", tokenizer, chunk_tokens=512)
    assert {len(chunks.chunk(i)) for i in range(len(chunks) - 1)} == {512}
