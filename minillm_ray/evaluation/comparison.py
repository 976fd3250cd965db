"""Methods side by side: the closing scores of their runs, mean and standard deviation over seeds.

RunResult of each run -> Comparison -> table on the terminal, compare.md, compare.json
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minillm_ray.evaluation.held_out import HeldOutScores
from minillm_ray.evaluation.summary import Measured
from minillm_ray.telemetry.console import format_cell

Cell = str | float | None

SCORES: Mapping[str, str] = {
    "reverse_kl": "reverse KL (nats/token)",
    "rouge_l": "Rouge-L",
    "response_tokens": "length (tokens)",
    "truncated_fraction": "truncated",
}
"""Field of HeldOutScores -> heading of its column."""


@dataclass(frozen=True)
class RunResult:
    """A finished run. folder: of it, relative to the comparison's; steps: optimizer steps of all its phases."""

    seed: int
    folder: str
    steps: int
    scores: HeldOutScores


@dataclass(frozen=True)
class MethodResult:
    """A row. runs: those that are finished, in the order of their seeds; wanted: how many there will be."""

    name: str
    wanted: int
    runs: tuple[RunResult, ...]

    def measured(self, score: str) -> Measured:
        """One value a run."""
        values = (getattr(run.scores, score) for run in self.runs)
        return Measured(tuple(math.nan if value is None else float(value) for value in values))


@dataclass(frozen=True)
class ComparisonResult:
    """teacher, student: what all runs share, the student as each of them begins; None where it was not measured."""

    teacher: HeldOutScores | None
    student: HeldOutScores | None
    methods: tuple[MethodResult, ...]

    def columns(self) -> tuple[str, ...]:
        """Headings of `rows`."""
        measured = [part for heading in SCORES.values() for part in (heading, "std")]
        return ("method", "seeds", "optimizer steps", *measured)

    def rows(self) -> list[list[Cell]]:
        """Of the table: what is shared, then the methods."""
        shared = {"teacher": self.teacher, "student before": self.student}
        rows: list[list[Cell]] = [
            [name, None, None, *(part for score in SCORES for part in (getattr(row, score), None))]
            for name, row in shared.items()
            if row is not None
        ]
        for method in self.methods:
            numbers: list[Cell] = []
            for score in SCORES:
                measured = method.measured(score)
                numbers += [measured.mean, measured.deviation] if method.runs else [None, None]
            done = len(method.runs)
            seeds = str(done) if done == method.wanted else f"{done} of {method.wanted}"
            rows.append([method.name, seeds, _steps(method.runs), *map(_known, numbers)])
        return rows

    def tree(self) -> dict[str, Any]:
        """For compare.json: every run's numbers, and mean and std of each method."""
        return {
            "teacher": None if self.teacher is None else asdict(self.teacher),
            "student": None if self.student is None else asdict(self.student),
            "methods": [
                {
                    "name": method.name,
                    "wanted": method.wanted,
                    "runs": [asdict(run) for run in method.runs],
                    "scores": {
                        score: {"mean": _known(measured.mean), "std": _known(measured.deviation)}
                        for score in SCORES
                        if method.runs
                        for measured in [method.measured(score)]
                    },
                }
                for method in self.methods
            ],
        }

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any]) -> "ComparisonResult":
        """What `tree` gave; means and deviations follow from its runs. Raises KeyError, TypeError for anything else."""
        teacher, student = (None if tree[row] is None else HeldOutScores(**tree[row]) for row in ("teacher", "student"))
        methods = tuple(
            MethodResult(
                method["name"],
                method["wanted"],
                tuple(RunResult(**run | {"scores": HeldOutScores(**run["scores"])}) for run in method["runs"]),
            )
            for method in tree["methods"]
        )
        return cls(teacher, student, methods)

    def markdown(self, title: str) -> str:
        """For compare.md."""
        columns, rows = self.columns(), self.rows()
        lines = [f"# {title}", "", _LEGEND, "", _markdown_row(columns)]
        lines.append(_markdown_row([":---", *["---:"] * (len(columns) - 1)]))
        lines += [_markdown_row([format_cell(cell) for cell in row]) for row in rows]
        return "\n".join(lines) + "\n"


_LEGEND = """\
Every run begins with the same teacher, student and data. On held-out prompts, one sampled response each: reverse KL is
KL(q || p) over the whole vocabulary at each state of the student's own responses, mean over tokens; truncated is the
share of responses that reached the longest length. Mean over seeds, and std, the standard deviation over them."""


def _steps(runs: Sequence[RunResult]) -> Cell:
    """The optimizer steps of each run, where they agree; else from the fewest to the most."""
    counts = sorted({run.steps for run in runs})
    if not counts:
        return None
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _known(value: Cell) -> Cell:
    return None if isinstance(value, float) and math.isnan(value) else value


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
