"""RUN/samples.parquet: some of the responses that were trained, token by token, with what was computed for each token.

Invariant: at any moment the file is complete and readable. A Parquet file cannot be appended to, so it is written anew
beside itself and renamed. To keep that cheap, rows wait until they are a twentieth of the file (the first ones do
not wait), and to keep it bounded, a full file loses every second step: it still reaches from the first step to
the last, denser towards the end. What waits is lost in a crash; `flush` at each checkpoint loses nothing that is kept.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.files import write_atomically

if TYPE_CHECKING:
    import pyarrow

_WAITING_SHARE = 20
_Step = tuple[str, int]


@dataclass(frozen=True)
class Sample:
    """One trained response of T tokens.

    step, phase          The optimiser step that trained it.
    prompt_index         Its prompt's place in the data set.
    weight_version       Version of the student that drew its first token.
    response_token_ids   int [T], exactly those that were trained. prompt_token_ids: the ones before them.
    kl                   float [T], nats. KL(q || p) at each response token.
    student_logprob      float [T], nats. log q of the token, at the weights before the step.
    teacher_logprob      float [T], nats. log p of the token.
    response_tokens      str [T]. What each token adds to the text; "" for one that is only part of a character.
    prompt, response     The same tokens as text, for people.
    truncated            It ended at max_response_tokens instead of EOS.

    Raises ValueError if the per-token lists differ in length.
    """

    step: int
    phase: str
    prompt_index: int
    weight_version: int
    prompt_token_ids: Sequence[int]
    response_token_ids: Sequence[int]
    kl: Sequence[float]
    student_logprob: Sequence[float]
    teacher_logprob: Sequence[float]
    response_tokens: Sequence[str]
    prompt: str
    response: str
    truncated: bool

    def __post_init__(self) -> None:
        num_tokens = len(self.response_token_ids)
        for name in ("kl", "student_logprob", "teacher_logprob", "response_tokens"):
            if len(getattr(self, name)) != num_tokens:
                raise ValueError(f"{name} has {len(getattr(self, name))} values; expected one a token, {num_tokens}")


class SamplesWriter:
    """Collects samples and keeps `path` complete. An existing file is continued: a step written again replaces it."""

    def __init__(self, path: Path, *, max_rows: int = 4096) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; expected at least 1")
        self._path = path
        self._max_rows = max_rows
        self._tables = _split_by_step(_read_table(path)) if path.exists() else {}
        self._num_waiting = 0

    def write(self, samples: Sequence[Sample]) -> None:
        """Take all samples of one or more steps; they reach the file now or with one of the next calls, see above."""
        import pyarrow

        rows: dict[_Step, list[dict[str, Any]]] = {}
        for sample in samples:
            row = {field.name: getattr(sample, field.name) for field in fields(Sample)}
            rows.setdefault((sample.phase, sample.step), []).append(row)
        for step, step_rows in rows.items():
            self._tables.pop(step, None)
            self._tables[step] = pyarrow.Table.from_pylist(step_rows[: self._max_rows], schema=_schema())
        while self._num_rows() > self._max_rows:
            self._thin()
        self._num_waiting += len(samples)
        if self._num_waiting * _WAITING_SHARE >= self._num_rows():
            self.flush()

    def flush(self) -> None:
        """Bring everything taken so far into the file. Raises OSError and then leaves the file as it was."""
        import pyarrow
        from pyarrow import parquet

        if not self._num_waiting:
            return
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.concat_tables(self._tables.values()), buffer, compression="zstd")
        write_atomically(self._path, buffer.getvalue())
        self._num_waiting = 0

    def close(self) -> None:
        self.flush()

    def _num_rows(self) -> int:
        return sum(table.num_rows for table in self._tables.values())

    def _thin(self) -> None:
        """Drop every second step, never the last. One step alone always fits: `write` cuts it to max_rows."""
        steps = list(self._tables)
        for step in steps[1:-1:2] if len(steps) > 2 else steps[:-1]:
            del self._tables[step]


def read_samples(path: Path, *, rows: Callable[[int], Sequence[int]] | None = None) -> list[Sample]:
    """The rows of samples.parquet, in file order.

    rows  Given the number of rows, the indices of those that are wanted; None for all.

    Raises InputError if there is no such file or it holds something else.
    """
    table = _read_table(path)
    if rows is not None:
        table = table.take(rows(table.num_rows))
    return [Sample(**row) for row in table.to_pylist()]


def _read_table(path: Path) -> "pyarrow.Table":
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}). Move the file away.") from error
    if table.schema.names != _schema().names:
        raise InputError(f"{path}: has columns {table.schema.names}; expected {_schema().names}. Move the file away.")
    return table.cast(_schema())


def _split_by_step(table: "pyarrow.Table") -> "dict[_Step, pyarrow.Table]":
    """The rows of each step, which lie together in the file."""
    steps = list(zip(table["phase"].to_pylist(), table["step"].to_pylist(), strict=True))
    starts = [row for row in range(len(steps)) if row == 0 or steps[row] != steps[row - 1]]
    ends = [*starts[1:], len(steps)]
    return {steps[start]: table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)}


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    tokens, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
    return pa.schema(
        {
            "step": pa.int64(),
            "phase": pa.string(),
            "prompt_index": pa.int64(),
            "weight_version": pa.int64(),
            "prompt_token_ids": tokens,
            "response_token_ids": tokens,
            "kl": numbers,
            "student_logprob": numbers,
            "teacher_logprob": numbers,
            "response_tokens": pa.list_(pa.string()),
            "prompt": pa.string(),
            "response": pa.string(),
            "truncated": pa.bool_(),
        }
    )
