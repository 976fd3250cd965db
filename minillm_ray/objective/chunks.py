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
CPU_CHUNK_TOKENS = 512
"""A product packs its whole head anew, which short chunks pay often: 0.4 s a chunk for V = 151,936, d = 896 and 2048
on two cores. Beyond this length little is gained, and the buffers cost page faults at every call."""
ROW_MULTIPLE = 32
"""Products whose row count is no multiple of it run up to a tenth slower (MKL on Zen 4: 171 rows cost more than 176).
"""


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
    """The fewest chunks whose buffers of V numbers a token fit in memory_mb; one token at the least."""
    row_bytes = vocab_size * dtype.itemsize
    memory = memory_mb * 2**20
    whole = memory // (row_bytes * (chunk_buffers + tile_buffers))
    if device.type != "cpu":
        chunk = _divide(num_tokens, whole)
        return Chunking(chunk, chunk)
    cached = CPU_TILE_BYTES // (row_bytes * (2 + tile_buffers))
    tile = max(min(whole, max(cached, torch.get_num_threads())), 1)
    fitting = (memory - tile * tile_buffers * row_bytes) // (row_bytes * chunk_buffers)
    chunk = _divide(num_tokens, min(fitting, CPU_CHUNK_TOKENS))
    return Chunking(chunk, min(tile, chunk))


def _divide(num_tokens: int, limit: int) -> int:
    """Chunk length, at most `limit` and at least 1: `num_tokens` in the fewest chunks, of nearly even length."""
    if limit > ROW_MULTIPLE:
        limit -= limit % ROW_MULTIPLE
    num_chunks = max(math.ceil(num_tokens / max(limit, 1)), 1)
    even = math.ceil(num_tokens / num_chunks)
    if num_chunks > 1 and limit >= ROW_MULTIPLE:
        even += -even % ROW_MULTIPLE
    return max(even, 1)
