"""The buffers of one chunk of tokens, and the loop that every pass over a batch shares.

    for start, end in space.chunks():              from the last token to the first; the chunk's raw logits are made
        for tile in space.tiles(start, end):       a few rows, last to first: the elementwise work happens here
            ...                                    the caller turns tile.student into the logit gradient
        space.add_products(gradients, start, end)

After the buffers only vectors are allocated. No buffer has N rows unless N tokens fit into the memory given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective.chunks import choose_chunking
from minillm_ray.objective.gradients import Gradients
from minillm_ray.objective.products import HeadProducts


@dataclass(frozen=True)
class Tile:
    """Views of the rows `rows` of the batch, float [n, V] each.

    student, teacher   raw logits, to be worked on in place (teacher is None where there is none)
    scratch            free for use
    cap_slope          the student's soft-cap derivative once `log_softmax_` has run, or None
    gradient           where the logit gradient must end up: `student` itself, or a buffer in the model's dtype
    tokens             int64 [n]
    """

    rows: slice
    tokens: Tensor
    student: Tensor
    teacher: Tensor | None
    scratch: Tensor
    cap_slope: Tensor | None
    gradient: Tensor

    def finish_gradient(self) -> None:
        """`student` holds d loss / d (softmax argument): apply the soft-cap's derivative, round if need be."""
        if self.cap_slope is not None:
            self.student.mul_(self.cap_slope)
        if self.gradient.dtype != self.student.dtype:
            self.gradient.copy_(self.student)


@dataclass(frozen=True)
class Buffers:
    """Of one chunk, [rows, V] each: raw logits of both models, a tile's scratch and soft-cap slope, the gradient."""

    student: Tensor
    teacher: Tensor | None
    scratch: Tensor
    cap_slope: Tensor | None
    gradient: Tensor


class Workspace:
    """One batch's heads and tokens, and the buffers of a chunk.

    lent: memory that nobody needs before the first call of `add_products` (see `Gradients.lend`), float [rows, V]. The
    first chunk's teacher logits may be there.
    """

    def __init__(
        self,
        student: HeadProducts,
        teacher: HeadProducts | None,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        memory_mb: int,
        lent: Tensor | None = None,
    ) -> None:
        self.student, self.teacher, self.dtype = student, teacher, dtype
        self.num_tokens = tokens.numel()
        self.device = tokens.device
        self._tokens = tokens
        cast = student.gradient_dtype != dtype
        self._tile_buffers = 1 + student.has_soft_cap
        self._chunking = chunking = choose_chunking(
            num_tokens=self.num_tokens,
            vocab_size=student.vocab_size,
            dtype=dtype,
            device=tokens.device,
            memory_mb=memory_mb,
            chunk_buffers=1 + (teacher is not None) + cast,
            tile_buffers=self._tile_buffers,
            lent_rows=0 if lent is None or teacher is None else len(lent),
        )
        self._lent = lent if chunking.first else None
        rows = chunking.rows(1 + (teacher is not None), self._tile_buffers)
        self._rows = self._buffer(rows)
        # Where products take the model's dtype, the gradient is rounded into a buffer of its own.
        longest = max(chunking.first, chunking.chunk)
        self._rounded = self._buffer(longest, student.gradient_dtype) if cast else None

    def vector(self) -> Tensor:
        """Zeros, float [N]."""
        return torch.zeros(self.num_tokens, dtype=self.dtype, device=self.device)

    def chunks(self, *, with_teacher: bool = True) -> Iterator[tuple[int, int]]:
        """(start, end) of each chunk, from the last token to the first, once its raw logits are in the buffers."""
        for start, end in self._chunking.backwards(self.num_tokens):
            buffers = self._buffers(start, end)
            self.student.logits_into(buffers.student, start, end)
            if self.teacher is not None and buffers.teacher is not None and with_teacher:
                self.teacher.logits_into(buffers.teacher, start, end)
            yield start, end

    def tiles(self, start: int, end: int) -> Iterator[Tile]:
        """The rows of the current chunk, a few at a time, last to first."""
        buffers = self._buffers(start, end)
        for low, high in self._chunking.tiles(start, end):
            at = slice(low - start, high - start)
            yield Tile(
                rows=slice(low, high),
                tokens=self._tokens[low:high],
                student=buffers.student[at],
                teacher=None if buffers.teacher is None else buffers.teacher[at],
                scratch=buffers.scratch[: high - low],
                cap_slope=None if buffers.cap_slope is None else buffers.cap_slope[: high - low],
                gradient=buffers.gradient[at],
            )

    def log_softmax_(self, tile: Tile, *, with_teacher: bool = True) -> None:
        """Raw logits of a tile become log q, log p and the soft-cap's slope, in place."""
        self.student.log_softmax_(tile.student, tile.cap_slope)
        if self.teacher is not None and tile.teacher is not None and with_teacher:
            self.teacher.log_softmax_(tile.teacher)

    def add_products(self, made: Gradients, start: int, end: int) -> None:
        """The two backward products of the current chunk, from the logit gradient its tiles have left."""
        self.student.add_gradients(made, self._buffers(start, end).gradient, start, end)

    def _buffers(self, start: int, end: int) -> Buffers:
        """Views of the memory that the chunk uses."""
        length = end - start
        tile = min(self._chunking.tile, length)
        tiles, rest = self._rows[: tile * self._tile_buffers], self._rows[tile * self._tile_buffers :]
        student, teacher = rest[:length], None
        if self.teacher is not None:
            lent = self._lent if end == self.num_tokens else None
            teacher = rest[length : 2 * length] if lent is None else lent[:length]
        return Buffers(
            student=student,
            teacher=teacher,
            scratch=tiles[:tile],
            cap_slope=tiles[tile:] if self.student.has_soft_cap else None,
            gradient=student if self._rounded is None else self._rounded[:length],
        )

    def _buffer(self, rows: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(rows, self.student.vocab_size, dtype=dtype or self.dtype, device=self.device)


def pick(rows: Tensor, tokens: Tensor, *, out: Tensor) -> None:
    """out[i] = rows[i, tokens[i]]."""
    out.copy_(rows.gather(1, tokens.unsqueeze(1)).squeeze(1))
