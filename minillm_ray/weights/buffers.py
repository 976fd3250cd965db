"""A version of the weights as a few flat byte buffers and an index, so that readers copy nothing.

    learner: full tensors -> pack -> buffers (Ray object store) -> unpack: views -> engine

Every buffer carries its hash; a reader that receives other bytes than were published refuses them.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from minillm_ray.config.errors import RunError

_ALIGNMENT_BYTES = 64


class WeightMismatchError(RunError):
    """The bytes that arrived, or what they compute, are not what the learner published."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes [offset, offset + size) of buffer number `bucket`."""

    name: str
    bucket: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class WeightLayout:
    """The entries of every tensor and the size of each buffer in bytes. It is the same for every version."""

    entries: tuple[TensorEntry, ...]
    bucket_bytes: tuple[int, ...]


@dataclass(frozen=True)
class WeightManifest:
    """What a reader needs beside the buffers: the version, the layout, the hash of each buffer."""

    version: int
    layout: WeightLayout
    hashes: tuple[str, ...]


def plan_layout(tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, bucket_bytes: int) -> WeightLayout:
    """Place tensors in order into buffers of about `bucket_bytes`; a larger tensor has a buffer of its own.

    Floating-point tensors are published in `dtype`. Only names, shapes and dtypes are read.
    """
    entries: list[TensorEntry] = []
    sizes: list[int] = [0]
    for name, tensor in tensors:
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        entry = TensorEntry(name, len(sizes) - 1, sizes[-1], kept, tuple(tensor.shape))
        if sizes[-1] and sizes[-1] + entry.size_bytes > bucket_bytes:
            sizes.append(0)
            entry = TensorEntry(name, len(sizes) - 1, 0, kept, tuple(tensor.shape))
        entries.append(entry)
        sizes[-1] += -(-entry.size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return WeightLayout(tuple(entries), tuple(sizes))


def pack(
    tensors: Iterable[tuple[str, Tensor]], layout: WeightLayout, *, version: int
) -> tuple[WeightManifest, list[npt.NDArray[np.uint8]]]:
    """Copy full tensors, in the layout's order, into fresh buffers; hash each. ValueError on another order."""
    buffers = [np.zeros(size, np.uint8) for size in layout.bucket_bytes]
    for entry, (name, tensor) in zip(layout.entries, tensors, strict=True):
        if name != entry.name or tuple(tensor.shape) != entry.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} came where the layout has {entry.name} {entry.shape}")
        target = torch.from_numpy(buffers[entry.bucket][entry.offset : entry.offset + entry.size_bytes])
        target.view(entry.dtype).view(entry.shape).copy_(tensor.detach())
    return WeightManifest(version, layout, tuple(_hash(buffer) for buffer in buffers)), buffers


def unpack(manifest: WeightManifest, buffers: Sequence[npt.NDArray[np.uint8]]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, in order. The tensors are read-only views of the buffers: copy out of them, then drop them.

    Raises WeightMismatchError, before the first tensor, where a buffer is not the one that was published.
    """
    for number, (expected, buffer) in enumerate(zip(manifest.hashes, buffers, strict=True)):
        if (found := _hash(buffer)) != expected:
            raise WeightMismatchError(
                f"buffer {number} of weight version {manifest.version} arrived with hash {found}; "
                f"{expected} was published"
            )
    return _views(manifest.layout, buffers)


def _views(layout: WeightLayout, buffers: Sequence[npt.NDArray[np.uint8]]) -> Iterator[tuple[str, Tensor]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = [torch.from_numpy(buffer) for buffer in buffers]
    for entry in layout.entries:
        raw = flat[entry.bucket][entry.offset : entry.offset + entry.size_bytes]
        yield entry.name, raw.view(entry.dtype).view(entry.shape)


def _hash(buffer: npt.NDArray[np.uint8]) -> str:
    return xxhash.xxh3_128_hexdigest(buffer.data)
