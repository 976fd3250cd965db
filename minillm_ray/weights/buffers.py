"""A version of the weights as a few flat byte buffers and an index, so that readers copy nothing.

    learner: full tensors -> pack: one buffer at a time -> Ray object store -> unpack: views -> engine

Every buffer carries its hash; a reader that receives other bytes than were published refuses them.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class ObjectStorePublisher:
    """Publishes through buffers. Each is filled in the same memory: touched once, and pinned for copies from a GPU.

    layout: of every version to come.
    """

    def __init__(self, layout: WeightLayout) -> None:
        self._layout = layout
        self._staging = torch.empty(
            max(layout.bucket_bytes), dtype=torch.uint8, pin_memory=torch.cuda.is_available()
        ).numpy()

    @property
    def num_buffers(self) -> int:
        return len(self._layout.bucket_bytes)

    def publish(
        self, tensors: Iterable[tuple[str, Tensor]], *, version: int
    ) -> Iterator[npt.NDArray[np.uint8] | WeightManifest]:
        """The buffers in turn, each gone once the next is asked for, and then the manifest."""
        return pack(tensors, self._layout, version=version, staging=self._staging)


def pack(
    tensors: Iterable[tuple[str, Tensor]], layout: WeightLayout, *, version: int, staging: npt.NDArray[np.uint8]
) -> Iterator[npt.NDArray[np.uint8] | WeightManifest]:
    """Yield each buffer, filled with full tensors in the layout's order, and then the manifest.

    Every buffer lies in `staging`, uint8 of at least the largest bucket: copy it before the next. A tensor is hashed as
    soon as it is copied, while it is in the cache. Raises ValueError where the tensors come in another order.
    """
    hashes: list[str] = []
    came = iter(tensors)
    for bucket, size in enumerate(layout.bucket_bytes):
        buffer, state, hashed = staging[:size], xxhash.xxh3_128(), 0
        for entry in (entry for entry in layout.entries if entry.bucket == bucket):
            _copy_to(buffer, entry, next(came, None))
            end = entry.offset + entry.size_bytes
            state.update(buffer[hashed:end].data)
            hashed = end
        state.update(buffer[hashed:].data)
        hashes.append(state.hexdigest())
        yield buffer
    if (extra := next(came, None)) is not None:
        raise ValueError(f"{extra[0]} came after the last tensor of the layout")
    yield WeightManifest(version, layout, tuple(hashes))


def _copy_to(buffer: npt.NDArray[np.uint8], entry: TensorEntry, named: tuple[str, Tensor] | None) -> None:
    name, tensor = named or ("nothing", torch.empty(0))
    if name != entry.name or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{name} {tuple(tensor.shape)} came where the layout has {entry.name} {entry.shape}")
    target = torch.from_numpy(buffer[entry.offset : entry.offset + entry.size_bytes])
    target.view(entry.dtype).view(entry.shape).copy_(tensor.detach())


def unpack(manifest: WeightManifest, buffers: Sequence[npt.NDArray[np.uint8]]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, in order. The tensors are read-only views of the buffers: copy out of them, then drop them.

    Raises WeightMismatchError, before the first tensor, where a buffer is not the one that was published.
    """
    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to others
        arrived = list(threads.map(_hash, buffers))
    for number, (expected, found) in enumerate(zip(manifest.hashes, arrived, strict=True)):
        if found != expected:
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
