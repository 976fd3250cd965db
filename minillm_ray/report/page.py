"""RUN/report.html: one file without any request, for light and dark, for phone and desktop.

    run folder -> RunRecord -> Html of each part -> page.html with style and script inside

The page's policy lets its own script run and no other, and lets nothing be fetched. Without the script everything is
there but the read-outs under the pointer and the switch between light and dark.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from minillm_ray.report.catalogue import FigurePlan, other_plans_for, plans_for
from minillm_ray.report.colours import css_variables
from minillm_ray.report.drawing import draw_figure, mark_key
from minillm_ray.report.html import Html, counted, element, fill, join
from minillm_ray.report.marks import FAMILIES, Mark, describe, marks_by_phase
from minillm_ray.report.outcome import began
from minillm_ray.report.overview import approximation, header, phase_table, tiles
from minillm_ray.report.record import RunRecord, read_run
from minillm_ray.report.responses import draw_responses
from minillm_ray.telemetry.console import format_duration
from minillm_ray.telemetry.files import write_atomically

_MAX_EVENTS = 300


def write_report(run_dir: Path, clock: Callable[[], float] = time.time) -> Path:
    """Write the report of the run in `run_dir`, whether it is done or goes on, and return its path.

    clock  Seconds since the epoch.

    Raises InputError if the folder has no metrics, or a broken file; OSError if it cannot be written.
    """
    record = read_run(run_dir)
    path = run_dir / "report.html"
    write_atomically(path, render(record, written=clock()))
    return path


def render(record: RunRecord, *, written: float) -> Html:
    """The whole page. written: seconds since the epoch."""
    return fill_page(
        title=record.folder.resolve().name,
        header=header(record, written=written),
        sections=[
            approximation(record),
            tiles(record),
            element("section", None, element("h2", None, "Phases"), phase_table(record)),
            _curves(record),
            _samples(record),
            _events(record),
        ],
        written=written,
    )


def fill_page(*, title: str, header: Html, sections: Sequence[Html], written: float) -> Html:
    """A whole page with the reports' style and script. written: seconds since the epoch."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        _file("page.html"),
        {
            "script_hash": Html(f"sha256-{digest}"),
            "title": element("title", None, f"{title} – minillm_ray"),
            "style": Html(css_variables() + _file("page.css")),
            "script": Html(script),
            "header": header,
            "main": join(*sections),
            "written": element("span", None, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written))),
        },
    )


def _curves(record: RunRecord) -> Html:
    """A section a phase, the latest first: that is the one under way, or the one the run was made for."""
    phases = record.phase_rows()
    marks = marks_by_phase(phases, record.events, began=began(record))
    return join(*(_phase_curves(name, rows, marks[name]) for name, rows in reversed(phases.items())))


def _phase_curves(name: str, rows: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> Html:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row))
    families = [family for family in FAMILIES if any(mark.family == family for mark in marks)]
    others = _figures(other_plans_for(metrics), rows, marks)
    remark = f"{counted(rows[-1]['step'], 'step')}; last value shown"
    return element(
        "section",
        None,
        element("h2", None, name, " ", element("small", None, remark)),
        mark_key(families) if families else "",
        element("div", {"class": "figures"}, *_figures(plans_for(metrics), rows, marks)),
        _folded("Other numbers", len(others), element("div", {"class": "figures"}, *others)) if others else "",
    )


def _figures(plans: Sequence[FigurePlan], rows: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> list[Html]:
    figures = [draw_figure(plan, rows, marks) for plan in plans]
    return [figure for figure in figures if figure is not None]


def _samples(record: RunRecord) -> Html:
    if not record.samples:
        return Html("")
    return element("section", None, element("h2", None, "Sampled responses"), draw_responses(record.samples))


def _events(record: RunRecord) -> Html:
    if not record.events:
        return Html("")
    start = began(record)
    rows = [
        element("li", None, element("time", None, format_duration(event.time - start)), " ", describe(event))
        for event in record.events[-_MAX_EVENTS:]
    ]
    return element("section", None, _folded("Events", len(record.events), element("ol", {"class": "events"}, *rows)))


def _folded(name: str, count: int, content: Html) -> Html:
    summary = element("summary", None, f"{name} ", element("small", None, f"{count:,}"))
    return element("details", None, summary, content)


def _file(name: str) -> str:
    return resources.files("minillm_ray.report").joinpath(name).read_text(encoding="utf-8")
