"""One file of a checkpoint: written, hashed and flushed to disk in one pass, or an error that says what to do.

    buffers -> write_file -> FileRecord -> manifest.json

The record's hash is that of the bytes in the writer's memory, so that whatever a disk or a network loses on the way is
found when the checkpoint is read. Tensors go into safetensors files; the format is written here because the
library keeps neither the error number of a full disk nor the chance to hash what it writes.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from minillm_ray.config.errors import RunError

_BLOCK_BYTES = 1 << 24
_DTYPES = {"float32": "F32", "int32": "I32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}
_REMEDIES = {
    errno.ENOSPC: "Free space there, or lower checkpoint.keep",
    errno.EDQUOT: "Free space there or have the quota raised, or lower checkpoint.keep",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f), or choose a run_dir on another file system",
}


class CheckpointError(RunError):
    """A checkpoint could not be written. Those that were complete before are as they were."""


@dataclass(frozen=True)
class FileRecord:
    """name: below the checkpoint's folder, with forward slashes. xxh3: 128-bit hash in hexadecimal."""

    name: str
    size_bytes: int
    xxh3: str


def write_file(folder: Path, name: str, content: Sequence[bytes | memoryview] | str) -> FileRecord:
    """Write folder/name, at most one folder below `folder`, and flush it to disk.

    `folder` itself is not made: a writer that comes late must not bring back a checkpoint that was given up.
    Raises CheckpointError for any OSError.
    """
    buffers = [content.encode()] if isinstance(content, str) else content
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    size_bytes = sum(len(view) for view in views)
    hasher = xxhash.xxh3_128()
    path = folder / name
    try:
        if path.parent != folder:
            path.parent.mkdir(exist_ok=True)
        # Unbuffered: a full disk shows in write(), and not once more when the file is closed.
        with path.open("xb", buffering=0) as file:
            for view in views:
                start = 0
                while start < len(view):
                    written = file.write(view[start : start + _BLOCK_BYTES])
                    hasher.update(view[start : start + written])
                    start += written
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error, size_bytes=size_bytes) from error
    return FileRecord(name, size_bytes, hasher.hexdigest())


def write_tensors(
    folder: Path, name: str, tensors: Mapping[str, npt.NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> FileRecord:
    """Write arrays as the safetensors file folder/name. Raises CheckpointError for any OSError, KeyError for a dtype
    that is not in use here."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    buffers, end = [], 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
        buffers.append(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return write_file(folder, name, [len(text).to_bytes(8, "little"), text, *buffers])


def hash_file(path: Path) -> str:
    """128-bit xxh3 of a file's content, in hexadecimal. Raises OSError."""
    hasher = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_error(path: Path, error: OSError, *, size_bytes: int) -> CheckpointError:
    """The message for an OSError at `path`, a file of `size_bytes`."""
    remedy = _REMEDIES.get(error.errno or 0, "Make the folder writable, or choose another run_dir")
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there"
    except OSError:
        free = "its folder is gone"
    return CheckpointError(
        f"{path}: cannot be written: {error.strerror or error}. It needs {size_bytes / 1e6:.1f} MB; {free}. {remedy}; "
        f"train again continues from the last complete checkpoint"
    )
