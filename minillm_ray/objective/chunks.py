"""How many tokens' logits are in memory at one time.

The head's gradient is as large as d rows of logits, and free until the first chunk's backward product is written: that
chunk's teacher logits may lie there, so that it can be longer than the others.

A chunk's logits are made by one product for each head; a tile is the few rows whose elementwise work is done together.
On a GPU a tile is a chunk. On a CPU a tile should stay in the last-level cache, since the ten elementwise passes cost
twice as much from memory; yet each pass over a tile is a barrier between threads, so it should not be smaller either.
"""

import math
from collections.abc import Callable, Iterator
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
    """chunk and tile in tokens, at least 1 each; first: of the chunk that lent memory holds half of, or 0 for none."""

    chunk: int
    tile: int
    first: int = 0

    def backwards(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each chunk, from the last token to the first."""
        if self.first:
            yield num_tokens - self.first, num_tokens
        yield from _backwards(0, num_tokens - self.first, self.chunk)

    def rows(self, chunk_buffers: int, tile_buffers: int) -> int:
        """How many rows of V the longest chunk needs; the first does with one of its `chunk_buffers` less."""
        of_a_chunk = self.chunk * chunk_buffers + min(self.tile, self.chunk) * tile_buffers
        of_the_first = self.first * (chunk_buffers - 1) + min(self.tile, self.first) * tile_buffers
        return max(of_a_chunk, of_the_first)

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
    lent_rows: int = 0,
) -> Chunking:
    """The fewest chunks whose buffers of V numbers a token fit in memory_mb; one token at the least.

    lent_rows: tokens of the first chunk that need one buffer less. It is used where that saves a chunk.
    """
    row_bytes = vocab_size * dtype.itemsize
    rows = memory_mb * 2**20 // row_bytes
    if device.type != "cpu":
        chunk, first = _chunk_and_first(
            num_tokens,
            lambda buffers: rows // (buffers + tile_buffers),
            chunk_buffers=chunk_buffers,
            lent_rows=lent_rows,
        )
        return Chunking(chunk, max(chunk, first), first)
    whole = rows // (chunk_buffers + tile_buffers)
    cached = CPU_TILE_BYTES // (row_bytes * (2 + tile_buffers))
    tile = max(min(whole, max(cached, torch.get_num_threads())), 1)
    chunk, first = _chunk_and_first(
        num_tokens,
        lambda buffers: min((rows - tile * tile_buffers) // buffers, CPU_CHUNK_TOKENS),
        chunk_buffers=chunk_buffers,
        lent_rows=lent_rows,
    )
    return Chunking(chunk, min(tile, max(chunk, first)), first)


def _chunk_and_first(
    num_tokens: int, fitting: Callable[[int], int], *, chunk_buffers: int, lent_rows: int
) -> tuple[int, int]:
    """fitting(buffers): the most tokens of a chunk that has so many buffers."""
    even = _divide(num_tokens, fitting(chunk_buffers))
    if chunk_buffers > 1 and lent_rows > 0:
        first = min(_round_down(min(fitting(chunk_buffers - 1), lent_rows)), num_tokens)
        chunk = _divide(num_tokens - first, fitting(chunk_buffers))
        if first > 0 and 1 + math.ceil((num_tokens - first) / chunk) < math.ceil(num_tokens / even):
            return chunk, first
    return even, 0


def _divide(num_tokens: int, limit: int) -> int:
    """Chunk length, at most `limit` and at least 1: `num_tokens` in the fewest chunks, of nearly even length."""
    limit = _round_down(limit)
    num_chunks = max(math.ceil(num_tokens / max(limit, 1)), 1)
    even = math.ceil(num_tokens / num_chunks)
    if num_chunks > 1 and limit >= ROW_MULTIPLE:
        even += -even % ROW_MULTIPLE
    return max(even, 1)


def _round_down(limit: int) -> int:
    return limit - limit % ROW_MULTIPLE if limit > ROW_MULTIPLE else limit
