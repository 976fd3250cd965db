"""OUT/report.html of a comparison: the table, a row of dots for each method, and the way to each run's own report."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm_ray.config.errors import InputError
from minillm_ray.report.html import Html, counted, element, join
from minillm_ray.report.page import fill_page
from minillm_ray.report.scales import Axis, tick_texts, value_axis
from minillm_ray.telemetry.console import format_cell
from minillm_ray.telemetry.files import write_atomically

_FIGURES = {
    "reverse_kl": ("Reverse KL", "nats a token, on the student's own responses", True),
    "rouge_l": ("Rouge-L", "0 to 100", False),
    "response_tokens": ("Response length", "tokens", True),
}
"""Score -> title, unit, whether its axis begins at 0."""
_WIDTH, _LEFT, _RIGHT, _ROW, _BASE = 360.0, 162.0, 14.0, 22.0, 24.0
_MAX_NAME = 25


def write_comparison_report(
    folder: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]], clock: Callable[[], float] = time.time
) -> Path:
    """Write the report of the comparison whose compare.json is in `folder`, and return its path.

    columns, rows: of its table. Raises InputError if there is no compare.json, OSError if the page cannot be written.
    """
    file = folder / "compare.json"
    if not file.is_file():
        raise InputError(f"{folder} has no compare.json; expected the run_dir of a comparison that has begun")
    tree = json.loads(file.read_text())
    path = folder / "report.html"
    write_atomically(path, render_comparison(folder.resolve().name, tree, columns, rows, written=clock()))
    return path


def render_comparison(
    name: str, tree: Mapping[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]], *, written: float
) -> Html:
    """The whole page. tree: of compare.json."""
    methods = tree["methods"]
    done, wanted = sum(len(method["runs"]) for method in methods), sum(method["wanted"] for method in methods)
    status = "done" if done == wanted else "under way"
    head = [
        element("span", {"class": f"status {status.replace(' ', '-')}"}, status),
        element("span", None, f"{done} of {counted(wanted, 'run')}"),
        element("span", None, f"{counted(len(methods), 'method')} from one teacher, one student and the same data"),
    ]
    figures = [_figure(score, tree) for score in _FIGURES]
    return fill_page(
        title=name,
        header=join(element("h1", None, name), element("p", {"class": "run"}, *head)),
        sections=[
            element("section", None, element("h2", None, "Methods"), _table(columns, rows)),
            element("section", None, element("h2", None, "By seed"), element("div", {"class": "figures"}, *figures)),
            element("section", None, element("h2", None, "Runs"), element("ol", {"class": "events"}, *_links(methods))),
        ],
        written=written,
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    def kind(index: int) -> dict[str, str] | None:
        return {"class": "number"} if index else None

    head = [element("th", kind(index), column) for index, column in enumerate(columns)]
    body = [
        element("tr", None, *(element("td", kind(index), format_cell(cell)) for index, cell in enumerate(row)))
        for row in rows
    ]
    table = element("table", None, element("thead", None, element("tr", None, *head)), element("tbody", None, *body))
    return element("div", {"class": "scroll"}, table)


def _figure(score: str, tree: Mapping[str, Any]) -> Html:
    """A line a method: a dot for each seed, and a stroke at their mean; the teacher and the first student above."""
    title, unit, from_zero = _FIGURES[score]
    shared = {"teacher": tree["teacher"], "student before": tree["student"]}
    lines = [(who, [row[score]], "muted") for who, row in shared.items() if row is not None]
    lines += [(method["name"], [run["scores"][score] for run in method["runs"]], "blue") for method in tree["methods"]]
    known = [(name, [value for value in values if value is not None], colour) for name, values, colour in lines]
    everything = [value for _, values, _ in known for value in values]
    caption = element("figcaption", None, element("h3", None, title, " ", element("small", None, unit)))
    if not everything:
        return element("figure", None, caption, element("p", {"class": "keys"}, "nothing measured yet"))
    axis = value_axis(min(everything), max(everything), from_zero=from_zero)
    height = _ROW * len(known) + _BASE
    said = "; ".join(f"{name} {', '.join(map(format_cell, values))}" for name, values, _ in known if values)
    svg = element(
        "svg",
        {"viewBox": f"0 0 {_WIDTH:.0f} {height:.0f}", "role": "img", "aria-label": f"{title}: {said}"},
        _axes(axis, height),
        *(_line(number, *line, axis) for number, line in enumerate(known)),
    )
    return element("figure", None, caption, svg)


def _axes(axis: Axis, height: float) -> Html:
    base = height - _BASE
    grid = "".join(f"M{_x(tick, axis):.1f} 0V{base:.0f}" for tick in axis.ticks)
    texts = [
        element("text", {"x": f"{_x(tick, axis):.1f}", "y": f"{base + 15:.0f}", "class": "x"}, text)
        for tick, text in zip(axis.ticks, tick_texts(axis), strict=True)
    ]
    return join(element("path", {"class": "grid", "d": grid}), *texts)


def _line(number: int, name: str, values: Sequence[float], colour: str, axis: Axis) -> Html:
    middle = _ROW * (number + 0.5)
    # Ablations are named after what they change, at the end.
    short = name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"
    parts = [element("text", {"x": f"{_LEFT - 10:.0f}", "y": f"{middle + 3.5:.1f}", "class": "y"}, short)]
    for value in values:
        place = {"cx": f"{_x(value, axis):.1f}", "cy": f"{middle:.1f}", "r": "3.4", "opacity": "0.75"}
        parts.append(element("circle", place, element("title", None, f"{name}: {format_cell(value)}")))
    if len(values) > 1:
        mean = _x(sum(values) / len(values), axis)
        parts.append(element("path", {"class": "line", "d": f"M{mean:.1f} {middle - 8:.1f}v16"}))
    return element("g", {"style": f"--c:var(--{colour})"}, *parts)


def _x(value: float, axis: Axis) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _RIGHT - _LEFT)


def _links(methods: Sequence[Mapping[str, Any]]) -> list[Html]:
    return [
        element("li", None, element("a", {"href": f"{run['folder']}/report.html"}, run["folder"]))
        for method in methods
        for run in method["runs"]
    ]
