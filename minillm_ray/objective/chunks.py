"""How many tokens' logits are in memory at one time.

A chunk's logits are made by one product for each head; a tile is the few rows whose elementwise work is done together.
On a GPU a tile is a chunk. On a CPU a tile's three rows of V numbers should stay in the second-level cache, since every
elementwise pass over memory costs as much as a fifth of the products.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

CPU_TILE_BYTES = 3 * 2**20
CPU_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Chunking:
    """chunk and tile in tokens, at least 1 each."""

    chunk: int
    tile: int

    def backwards(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each chunk, from the last token to the first."""
        yield from _backwards(0, num_tokens, self.chunk)

    def tiles(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each tile of a chunk, last to first."""
        yield from _backwards(start, end, self.tile)


def _backwards(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    while end > start:
        yield max(start, end - step), end
        end -= step


def choose_chunking(
    *,
    num_tokens: int,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    memory_mb: int,
    chunk_buffers: int,
    tile_buffers: int,
) -> Chunking:
    """The largest chunk whose buffers of V numbers a token fit in memory_mb; never below one token."""
    row_bytes = vocab_size * dtype.itemsize
    memory = memory_mb * 2**20
    if device.type != "cpu":
        chunk = memory // (row_bytes * (chunk_buffers + tile_buffers))
        chunk = min(max(chunk, 1), max(num_tokens, 1))
        return Chunking(chunk, chunk)
    tile = min(max(CPU_TILE_BYTES // (row_bytes * (2 + tile_buffers)), torch.get_num_threads()), max(num_tokens, 1))
    chunk = (memory - tile * tile_buffers * row_bytes) // (row_bytes * chunk_buffers)
    chunk = min(max(chunk, 1), max(num_tokens, 1))
    return Chunking(chunk, min(tile, chunk))
