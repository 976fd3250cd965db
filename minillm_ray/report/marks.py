"""Events on the axis of steps: what broke into a run, and between which steps.

An event carries a time, a figure steps. The lines of metrics.jsonl have both, and the ones on either side of an event
say where it belongs.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm_ray.telemetry.console import format_duration
from minillm_ray.telemetry.events import Event

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "skipped step": ("skipped",),
    "death": ("died", "death", "lost", "hung", "failed"),
    "restart": ("restart", "replaced", "ready"),
    "scale change": ("scale", "drain"),
    "resume": ("resume", "rolled_back", "rollback"),
}
"""What is marked -> words of which one is in the kind of such an event. Other kinds are in the list of events alone."""


@dataclass(frozen=True)
class Mark:
    """An event that is drawn. step: where, perhaps between two steps; family: a key of FAMILIES; text: what to say."""

    step: float
    family: str
    text: str


def family_of(kind: str) -> str | None:
    """The first family with a word that is in `kind`."""
    return next((family for family, words in FAMILIES.items() if any(word in kind for word in words)), None)


def marks_by_phase(
    phases: Mapping[str, Sequence[Mapping[str, Any]]], events: Sequence[Event], *, began: float
) -> dict[str, list[Mark]]:
    """The marks of each phase, ascending by time.

    phases  Its lines of metrics.jsonl, ascending by step, for each phase in the order of the run.
    began   When the run did, seconds since the epoch; marks tell the time since then.
    """
    marks: dict[str, list[Mark]] = {phase: [] for phase in phases}
    for event in sorted(events, key=lambda event: event.time):
        family = family_of(event.kind)
        if family is None or not phases:
            continue
        phase = _phase_at(phases, event)
        if family == "restart" and event.time < phases[phase][0]["time"]:
            continue  # the first start
        text = f"{describe(event)}, {format_duration(event.time - began)} after the start"
        marks[phase].append(Mark(_step_at(phases[phase], event), family, text))
    return marks


def describe(event: Event) -> str:
    """rollout died: replica 2, reason "…"."""
    fields = ", ".join(f"{name} {value}" for name, value in _flat(event.fields))
    return f"{event.kind.replace('_', ' ')}{': ' if fields else ''}{fields}"


def _phase_at(phases: Mapping[str, Sequence[Mapping[str, Any]]], event: Event) -> str:
    """The one that the event names, else the first that ended after it, else the last."""
    if (named := event.fields.get("phase")) in phases:
        return str(named)
    return next((phase for phase, rows in phases.items() if event.time <= rows[-1]["time"]), list(phases)[-1])


def _step_at(rows: Sequence[Mapping[str, Any]], event: Event) -> float:
    first, last = rows[0]["step"], rows[-1]["step"]
    if isinstance(step := event.fields.get("step"), int):
        return float(min(max(step, first), last))
    after = bisect_left(rows, event.time, key=lambda row: row["time"])
    if after in (0, len(rows)):
        return float(first if after == 0 else last)
    return (rows[after - 1]["step"] + rows[after]["step"]) / 2


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
