"""One file of a checkpoint: what is recorded is what was given, and the tensors are plain safetensors."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors import safe_open
from safetensors.numpy import load_file

from minillm_ray.checkpoint import files
from minillm_ray.checkpoint.files import CheckpointError, FileRecord, hash_file, write_file, write_tensors


@pytest.mark.parametrize("content", ["nats: é", [b"ab", memoryview(b"cd"), b""], [], [bytes(100)] * 3])
def test_the_record_is_that_of_the_bytes(
    tmp_path: Path, content: str | list[bytes | memoryview], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and hash, also where the content comes in many blocks; and they are what is read back."""
    monkeypatch.setattr(files, "_BLOCK_BYTES", 7)
    expected = content.encode() if isinstance(content, str) else b"".join(content)
    record = write_file(tmp_path, "inner/file", content)
    assert record == FileRecord("inner/file", len(expected), xxhash.xxh3_128_hexdigest(expected))
    assert (tmp_path / "inner" / "file").read_bytes() == expected
    assert hash_file(tmp_path / "inner" / "file") == record.xxh3


def test_two_writers_of_one_file_are_an_error(tmp_path: Path) -> None:
    """Neither gets the bytes of the other under its record."""
    write_file(tmp_path, "file", "first")
    with pytest.raises(CheckpointError, match="File exists"):
        write_file(tmp_path, "file", "second")


def test_tensors_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    """Every dtype in use, no axis, no element, memory that is not contiguous, and the metadata."""
    generator = np.random.default_rng(0)
    tensors = {
        "float": generator.normal(size=(3, 5)).astype(np.float32),
        "transposed": generator.normal(size=(3, 5)).astype(np.float32).T,
        "scalar": np.array(2.5, dtype=np.float32),
        "none": np.zeros((0, 4), dtype=np.float32),
        "flags": np.array([True, False, True]),
        "ids": np.arange(7, dtype=np.int32),
        "long": np.array([-(2**60)], dtype=np.int64),
        "bytes": np.arange(5, dtype=np.uint8),
    }
    record = write_tensors(tmp_path, "file.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    with safe_open(tmp_path / "file.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert record.size_bytes == (tmp_path / "file.safetensors").stat().st_size


def test_the_error_survives_the_way_from_one_process_to_another(tmp_path: Path) -> None:
    """A learner rank raises it, the driver prints it."""
    with pytest.raises(CheckpointError) as caught:
        write_file(tmp_path / "none", "file", "text")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
