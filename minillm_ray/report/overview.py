"""The top of the report: what ran, how it stands, the numbers that matter, and a table of phases."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from statistics import median
from typing import Any

from minillm_ray.report.html import Html, counted, element, join
from minillm_ray.report.outcome import PhaseOutcome, began, last_written, phase_outcomes, run_status
from minillm_ray.report.record import RunRecord
from minillm_ray.telemetry.console import format_cell, format_duration

_SCORES = {
    "reverse_kl": "reverse KL (nats a token)",
    "forward_kl": "forward KL (nats a token)",
    "rouge_l": "Rouge-L",
    "response_tokens": "mean length (tokens)",
    "truncated_fraction": "truncated",
}
_ROWS = {"before": "student before", "after": "student after"}
_APPROXIMATIONS = {
    "topk": "teacher.payload is topk: the teacher sent its most likely tokens and the mass of all others in one. Every "
    "reverse KL of this report is a lower bound, and so is the loss that was minimised.",
    "sampled": "teacher.payload is sampled: the teacher sent the log-probability of the drawn token alone. The reverse "
    "KL of this report is an estimate from single samples: right on average, far noisier than the exact one.",
}


def header(record: RunRecord, *, written: float) -> Html:
    """Name, status and models. written: when the report is, seconds since the epoch."""
    status = run_status(record)
    words: list[str] = [element("span", {"class": f"status {status.status.replace(' ', '-')}"}, status.status)]
    if status.reason:
        words.append(element("span", {"class": "reason"}, status.reason))
    if status.status == "under way":
        words.append(f"last written {format_duration(written - last_written(record))} before this report")
    phases = " → ".join(f"{phase.kind} {phase.model}" for phase in phase_outcomes(record))
    models = [
        element("span", {"title": str(model)}, f"{role} ", element("b", None, _short(str(model))))
        for role in ("student", "teacher")
        if (model := record.config.get(role, {}).get("model"))
    ]
    return join(
        element("h1", None, record.folder.resolve().name),
        element("p", {"class": "run"}, *(element("span", None, part) for part in (*words, phases, *models))),
    )


def approximation(record: RunRecord) -> Html:
    """A banner where the divergences are not exact, else nothing."""
    payload = record.config.get("teacher", {}).get("payload")
    kind = payload.get("kind") if isinstance(payload, Mapping) else payload
    text = _APPROXIMATIONS.get(str(kind))
    return element("p", {"class": "notice"}, element("b", None, "Approximate. "), text) if text else Html("")


def tiles(record: RunRecord) -> Html:
    """The numbers that say whether it worked."""
    return element("dl", {"class": "tiles"}, *(_tile(*tile) for tile in _numbers(record)))


def phase_table(record: RunRecord) -> Html:
    """A row a phase, then the closing table of each phase that has one."""
    phases = phase_outcomes(record)
    columns = ("phase", "status", "closing score", "steps", "time")
    rows = [
        (
            f"{phase.number} {phase.kind} {phase.model}",
            element("span", {"class": f"status {phase.status.replace(' ', '-')}"}, phase.status),
            _closing(phase),
            f"{phase.steps:,}" + (f" of {phase.total:,}" if phase.total else ""),
            "–" if phase.seconds is None else format_duration(phase.seconds),
        )
        for phase in phases
    ]
    return join(_table(columns, rows, text_columns=3), *(_score_table(phase) for phase in phases if phase.scores))


def _numbers(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Heading, number and remark of each tile."""
    phases = phase_outcomes(record)
    scored = [phase for phase in phases if {"before", "after"} <= set(phase.scores)]
    if scored:
        scores = scored[-1].scores
        first, last = (scores[row].get("reverse_kl") for row in ("before", "after"))
        ratio = f", × {last / first:.3f}" if first and last else ""
        yield "Held-out reverse KL", f"{format_cell(first)} → {format_cell(last)}", f"nats a token{ratio}"
        rouge = {row: numbers.get("rouge_l") for row, numbers in scores.items()}
        if rouge["after"] is not None:
            remark = f"teacher {format_cell(rouge['teacher'])}" if rouge.get("teacher") is not None else "0 to 100"
            yield "Rouge-L", f"{format_cell(rouge['before'])} → {format_cell(rouge['after'])}", remark
    elif divergence := _values(record, "objective/kl_nats_per_token/mean"):
        yield "Reverse KL, training", f"{divergence[0]:.4g} → {divergence[-1]:.4g}", "nats a token, first and last step"
    if speeds := _values(record, "rollout/tokens_per_second/total"):
        yield "Speed", f"{median(speeds):,.0f}", "response tokens a second, median"
    steps = counted(sum(phase.steps for phase in phases), "optimizer step")
    yield "Time", format_duration(last_written(record) - began(record)), f"{steps} in all phases"


def _tile(heading: str, number: str, remark: str) -> Html:
    remark_cell = element("dd", {"class": "remark"}, remark)
    return element("div", None, element("dt", None, heading), element("dd", None, number), remark_cell)


def _values(record: RunRecord, metric: str) -> list[float]:
    return [row[metric] for row in record.metrics if row.get(metric) is not None]


def _closing(phase: PhaseOutcome) -> str:
    if phase.closing_loss is not None:
        return f"validation loss {format_cell(phase.closing_loss)}"
    if "after" in phase.scores:
        return f"reverse KL {format_cell(phase.scores['after'].get('reverse_kl'))}"
    return "–"


def _score_table(phase: PhaseOutcome) -> Html:
    names = list(dict.fromkeys(name for numbers in phase.scores.values() for name in numbers))
    columns = ("model", *(_SCORES.get(name, name.replace("_", " ")) for name in names))
    rows = [
        (_ROWS.get(row, row), *(_score(name, numbers.get(name)) for name in names))
        for row, numbers in phase.scores.items()
    ]
    return join(element("h3", None, f"Held-out prompts, {phase.number} {phase.kind}"), _table(columns, rows))


def _score(name: str, value: Any) -> str:
    if name.endswith("_fraction") and isinstance(value, float):
        return f"{100 * value:.1f} %"
    return format_cell(value) if isinstance(value, int | float | None) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> Html:
    """The first text_columns to the left, numbers to the right."""

    def row(tag: str, cells: Sequence[str]) -> Html:
        text = [element(tag, None, cell) for cell in cells[:text_columns]]
        return element("tr", None, *text, *(element(tag, {"class": "number"}, cell) for cell in cells[text_columns:]))

    head = element("thead", None, row("th", columns))
    table = element("table", None, head, element("tbody", None, *(row("td", cells) for cells in rows)))
    return element("div", {"class": "scroll"}, table)


def _short(model: str) -> str:
    """A Hugging Face id, or the last folder of a path."""
    return PurePath(model).name if PurePath(model).is_absolute() else model
