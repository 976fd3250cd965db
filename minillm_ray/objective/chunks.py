"""How many tokens' logits are in memory at one time.

A chunk's logits are made by one product for each head; a tile is the few rows whose elementwise work is done together.
On a GPU a tile is a chunk. On a CPU a tile should stay in the last-level cache, since the ten elementwise passes cost
twice as much from memory; yet each pass over a tile is a barrier between threads, so it should not be smaller either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

CPU_TILE_BYTES = 12 * 2**20
CPU_CHUNK_TOKENS = 256
"""Longer products are no faster on a CPU, and the buffers of longer chunks cost page faults at every call."""


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
    """The fewest chunks of even length whose buffers of V numbers a token fit in memory_mb; one token at the least."""
    row_bytes = vocab_size * dtype.itemsize
    memory = memory_mb * 2**20
    if device.type != "cpu":
        chunk = _even(num_tokens, memory // (row_bytes * (chunk_buffers + tile_buffers)))
        return Chunking(chunk, chunk)
    tile = max(CPU_TILE_BYTES // (row_bytes * (2 + tile_buffers)), torch.get_num_threads())
    fitting = (memory - tile * tile_buffers * row_bytes) // (row_bytes * chunk_buffers)
    chunk = _even(num_tokens, min(fitting, CPU_CHUNK_TOKENS))
    return Chunking(chunk, _even(chunk, tile))


def _even(total: int, limit: int) -> int:
    """The length of the fewest equal parts of `total` that are at most `limit` long, at least 1."""
    num_parts = math.ceil(total / max(limit, 1))
    return math.ceil(total / max(num_parts, 1)) or 1
