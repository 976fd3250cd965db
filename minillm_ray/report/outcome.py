"""How far a run came and what it scored, read out of its events, its configuration and its metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minillm_ray.report.record import RunRecord

Status = Literal["done", "failed", "stopped", "under way", "not begun"]
_VALIDATION_LOSS = "learner/supervised_loss_nats_per_token/validation"


@dataclass(frozen=True)
class RunStatus:
    """reason: why it failed, "" otherwise. A run that was killed leaves no word of its end and counts as under way."""

    status: Status
    reason: str


@dataclass(frozen=True)
class PhaseOutcome:
    """One phase. steps: optimizer steps made; total: of how many, where that is known; seconds: None before the end.

    name          As in metrics.jsonl, None before its first step.
    closing_loss  Lowest validation loss, nats a token, of a supervised phase.
    scores        Row of the closing table -> its numbers, {} without a closing table.
    """

    number: int
    kind: str
    model: str
    name: str | None
    status: Status
    steps: int
    total: int | None
    seconds: float | None
    closing_loss: float | None
    scores: Mapping[str, Mapping[str, float | None]]


def run_status(record: RunRecord) -> RunStatus:
    """By the last thing that was written: whatever follows `run_ended` is a run that was taken up again."""
    ended = [event for event in record.events if event.kind == "run_ended"]
    if not ended or ended[-1] is not record.events[-1] or last_written(record) > ended[-1].time:
        return RunStatus("under way", "")
    status, reason = ended[-1].fields.get("status"), str(ended[-1].fields.get("reason", ""))
    if status == "done" or status == "failed" or status == "stopped":
        return RunStatus(status, reason)
    return RunStatus("under way", "")


def began(record: RunRecord) -> float:
    """Seconds since the epoch of the first thing that the run wrote."""
    return min([row["time"] for row in record.metrics] + [event.time for event in record.events])


def last_written(record: RunRecord) -> float:
    """Seconds since the epoch of the last step or event."""
    return max([row["time"] for row in record.metrics] + [event.time for event in record.events])


def phase_outcomes(record: RunRecord) -> list[PhaseOutcome]:
    """Every phase of the configuration, or of the metrics where there is no configuration, in the order of the run."""
    rows = record.phase_rows()
    status = run_status(record).status
    planned = record.config.get("phases") or [{"kind": name.partition("-")[2] or name} for name in rows]
    return [_phase(record, rows, number, plan, status) for number, plan in enumerate(planned, start=1)]


def _phase(
    record: RunRecord,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    number: int,
    plan: Mapping[str, Any],
    run: Status,
) -> PhaseOutcome:
    name = next((name for name in rows if name.startswith(f"{number}-")), None)
    of_phase = rows[name] if name else []
    times = {event.kind: event.time for event in record.events if event.fields.get("number") == number}
    first, end = times.get("phase_began"), times.get("phase_ended")
    losses = [row[_VALIDATION_LOSS] for row in of_phase if row.get(_VALIDATION_LOSS) is not None]
    return PhaseOutcome(
        number=number,
        kind=str(plan.get("kind", "")),
        model=str(plan.get("model", "student")),
        name=name,
        status="done" if end else run if first or name else "not begun",
        steps=of_phase[-1]["step"] if of_phase else 0,
        total=plan.get("steps"),
        seconds=end - first if first and end else None,
        closing_loss=min(losses, default=None),
        scores=_scores(record, name),
    )


def _scores(record: RunRecord, name: str | None) -> Mapping[str, Mapping[str, float | None]]:
    tables = [
        event.fields for event in record.events if event.kind == "held_out_scores" and event.fields.get("phase") == name
    ]
    if not tables or name is None:
        return {}
    return {row: numbers for row, numbers in tables[-1].items() if isinstance(numbers, Mapping)}
