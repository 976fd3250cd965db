"""What a person sees while a run goes on: one progress line, messages, and tables at the end.

On a terminal the line is drawn anew in place. Elsewhere (a file, `ray job logs`) a plain line is printed for the first
and the last step and at most every ten seconds in between. Progress and messages go to stderr, tables to stdout.
A number is never cut: what does not fit beside the bar goes to the next line.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

_PLAIN_INTERVAL_SECONDS = 10.0
_MIN_BAR = 8
_MAX_BAR = 40
_MAX_TEXT_CELL = 24


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step. What a phase does not have is None and is not shown.

    loss                what was differentiated
    reverse_kl          nats a token
    tokens_per_second   tokens of the step over its time
    response_tokens     mean response length
    """

    loss: float | None = None
    reverse_kl: float | None = None
    tokens_per_second: float | None = None
    response_tokens: float | None = None


class RunConsole:
    """The progress of one phase after the other. Use as: begin, step for every step, end; message at any time.

    stream   Where progress and messages go; stderr unless given.
    clock    Seconds, monotonic.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._clock = clock
        self._progress: _Progress | None = None
        self._live: Live | None = None
        self._printed_at = float("-inf")

    def begin(self, phase: str, *, total_steps: int, done_steps: int = 0) -> None:
        """Start the line of a phase; `done_steps` of its `total_steps` were made before a resume."""
        from rich.live import Live

        self.end()
        self._progress = _Progress(phase, total_steps, done_steps, self._clock)
        self._printed_at = float("-inf")
        if self._console.is_terminal:
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()

    def step(self, step: int, numbers: StepNumbers) -> None:
        """Step number `step` (from 1) is done. Raises RuntimeError outside begin and end."""
        if self._progress is None:
            raise RuntimeError("step() outside begin() and end(): no phase is under way")
        self._progress.update(step, numbers)
        if self._live:
            return
        is_due = self._clock() - self._printed_at >= _PLAIN_INTERVAL_SECONDS
        if is_due or step >= self._progress.total_steps:
            self._printed_at = self._clock()
            self._console.print(self._progress.plain_line(), markup=False)

    def message(self, text: str) -> None:
        """Print a line above the progress."""
        self._console.print(text, markup=False)

    def end(self) -> None:
        """Leave the line as it is and go on below it. Harmless where nothing is under way."""
        if self._live:
            self._live.stop()
        self._live = None
        self._progress = None


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]], stream: TextIO | None = None
) -> None:
    """Print a table to stdout or `stream`: text to the left, numbers to the right with four significant digits.

    rows  One value a column; None is shown as "-". Raises ValueError for a row of another length.
    A number is never cut: on a narrow terminal headings and text wrap, and past that the table is wider than it.
    """
    from rich.console import Console
    from rich.table import Table

    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} values; expected one for each of the columns {list(columns)}")
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        is_text = any(isinstance(row[index], str) for row in rows)
        longest = max((len(format_cell(row[index])) for row in rows), default=0)
        width = max(min(longest, _MAX_TEXT_CELL) if is_text else longest, *map(len, column.split()))
        table.add_column(column, justify="left" if is_text else "right", min_width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(format_cell, row))
    Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False).print(table, crop=False)


def format_cell(value: str | float | None) -> str:
    """A table cell: text as it is, whole numbers with thousands separators, others with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:#.4g}".removesuffix(".")


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds: "0:04:31"."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Progress:
    """State of the line, and how it looks in a given width."""

    def __init__(self, phase: str, total_steps: int, done_steps: int, clock: Callable[[], float]) -> None:
        self.total_steps = total_steps
        self._phase = phase
        self._first = self._step = done_steps
        self._numbers = StepNumbers()
        self._clock = clock
        self._began_at = self._stepped_at = clock()

    def update(self, step: int, numbers: StepNumbers) -> None:
        self._step = step
        self._numbers = numbers
        self._stepped_at = self._clock()

    def plain_line(self) -> str:
        return "  ".join([f"{self._phase} step {self._step}/{self.total_steps}", *self._fields()])

    def bar_line(self, width: int, *, ascii_only: bool = False) -> str:
        """One line of at most `width` characters, or two where that is too narrow for a bar and all numbers."""
        head, fields = f"{self._phase} {self._step}/{self.total_steps}", self._fields()
        one_line = " ".join([head, *fields])
        room = width - len(one_line) - 1
        if room >= _MIN_BAR:
            return " ".join([head, self._bar(min(room, _MAX_BAR), ascii_only), *fields])
        room = width - len(head) - 1
        first = " ".join([head, self._bar(min(room, _MAX_BAR), ascii_only)]) if room >= _MIN_BAR else head
        return f"{first}\n{' '.join(fields)}"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield Text(self.bar_line(options.max_width, ascii_only=options.ascii_only), overflow="fold")

    def _bar(self, width: int, ascii_only: bool) -> str:
        filled = round(width * min(self._step / self.total_steps, 1.0)) if self.total_steps else width
        done, left = "#-" if ascii_only else "━─"
        return done * filled + left * (width - filled)

    def _fields(self) -> list[str]:
        numbers = self._numbers
        shown = [
            ("loss {:.4f}", numbers.loss),
            ("KL {:.4f}", numbers.reverse_kl),
            ("{:.0f} tok/s", numbers.tokens_per_second),
            ("len {:.1f}", numbers.response_tokens),
        ]
        fields = [text.format(value) for text, value in shown if value is not None]
        return [*fields, *self._time()]

    def _time(self) -> list[str]:
        """What is left of the phase, once it can be known; at the end, what it took."""
        made = self._step - self._first
        took = self._stepped_at - self._began_at
        if not made:
            return []
        if self._step >= self.total_steps:
            return [f"in {format_duration(took)}"]
        left = (self.total_steps - self._step) * took / made
        return [f"ETA {format_duration(left - (self._clock() - self._stepped_at))}"]
