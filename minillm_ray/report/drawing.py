"""One figure as SVG that needs no script: lines, gaps, the spread of thinned steps, events, and a legend with numbers.

The points are also left in an attribute, from which the page's script reads out numbers under the pointer:
for each curve a list of [x, value, step], or [x, mean, first step, last step] where it was thinned.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minillm_ray.report.catalogue import Curve, FigurePlan
from minillm_ray.report.html import Html, element, join
from minillm_ray.report.marks import Mark
from minillm_ray.report.scales import Axis, log_axis, step_axis, tick_texts, value_axis
from minillm_ray.report.series import Bucket, buckets_of, segments
from minillm_ray.telemetry.console import format_cell
from minillm_ray.telemetry.declarations import METRICS

WIDTH, HEIGHT = 360.0, 188.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 14.0, 24.0
_MAX_POINTS = 300  # about one a pixel on a phone
_MOST_DOTS = 12
_MARK_COLOURS = {
    "death": "red",
    "skipped step": "orange",
    "restart": "green",
    "scale change": "blue",
    "resume": "violet",
}


def draw_figure(plan: FigurePlan, rows: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> Html | None:
    """The figure of one phase, or None where no value of it is finite. rows: those of the phase, ascending by step."""
    curves = [(curve, buckets_of(rows, curve.metric, at_most=_MAX_POINTS)) for curve in plan.curves]
    curves = [(curve, buckets) for curve, buckets in curves if not all(bucket.is_gap for bucket in buckets)]
    if not curves:
        return None
    drawn = [bucket for _, buckets in curves for bucket in buckets if not bucket.is_gap]
    x = step_axis(rows[0]["step"], rows[-1]["step"])
    y = _value_axis(plan, min(bucket.low for bucket in drawn), max(bucket.high for bucket in drawn))
    described = "; ".join(f"{curve.label} {_first_to_last(buckets)}" for curve, buckets in curves)
    svg = element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            "role": "img",
            "aria-label": f"{plan.title} ({plan.unit}) over steps {rows[0]['step']} to {rows[-1]['step']}: {described}",
            "data-curves": json.dumps([_points(buckets, x) for _, buckets in curves], separators=(",", ":")),
        },
        _axes(x, y),
        *(_mark(mark, x) for mark in _apart(marks, x)),
        *(_curve(curve, buckets, x, y) for curve, buckets in curves),
    )
    return element("figure", None, _caption(plan, curves), svg)


def mark_key(families: Sequence[str]) -> Html:
    """What the marks of these families look like."""
    return element("p", {"class": "marks"}, *(_mark_name(family) for family in families))


def _mark_name(family: str) -> Html:
    return element("span", {"style": f"--c:var(--{_MARK_COLOURS[family]})"}, element("i", None, "▼"), f" {family}")


def _value_axis(plan: FigurePlan, low: float, high: float) -> Axis:
    if plan.scale == "log" and low > 0:
        return log_axis(low, high)
    return value_axis(low, high, from_zero=plan.from_zero)


def _caption(plan: FigurePlan, curves: Sequence[tuple[Curve, list[Bucket]]]) -> Html:
    keys = []
    for curve, buckets in curves:
        last = next(bucket for bucket in reversed(buckets) if not bucket.is_gap)
        name = [element("i", None), curve.label, " "] if len(plan.curves) > 1 else [element("i", None)]
        keys.append(
            element(
                "span",
                {"style": f"--c:var(--{curve.colour})", "title": METRICS.get(curve.metric, curve.metric)},
                *name,
                element("output", None, format_cell(last.mean)),
            )
        )
    return element(
        "figcaption",
        None,
        element("h3", None, plan.title, " ", element("small", None, plan.unit)),
        element("p", {"class": "keys"}, *keys),
    )


def _axes(x: Axis, y: Axis) -> Html:
    lines, texts = [], []
    for tick, text in zip(y.ticks, tick_texts(y), strict=True):
        height = _y(tick, y)
        lines.append(f"M{_LEFT:.0f} {height:.1f}H{WIDTH - _RIGHT:.0f}")
        texts.append(element("text", {"x": f"{_LEFT - 6:.0f}", "y": f"{height + 3.5:.1f}", "class": "y"}, text))
    base = HEIGHT - _BOTTOM
    stubs = [f"M{_x(tick, x):.1f} {base:.0f}v4" for tick in x.ticks]
    texts.append(element("text", {"x": f"{_LEFT - 6:.0f}", "y": f"{base + 16:.0f}", "class": "y"}, "step"))
    for tick, text in zip(x.ticks, tick_texts(x), strict=True):
        texts.append(element("text", {"x": f"{_x(tick, x):.1f}", "y": f"{base + 16:.0f}", "class": "x"}, text))
    base_line = f"M{_LEFT:.0f} {base:.0f}H{WIDTH - _RIGHT:.0f}"
    return join(
        element("path", {"class": "grid", "d": "".join(lines)}),
        element("path", {"class": "axis", "d": base_line + "".join(stubs)}),
        *texts,
    )


def _curve(curve: Curve, buckets: Sequence[Bucket], x: Axis, y: Axis) -> Html:
    parts = []
    stretches = list(segments(buckets))
    if any(bucket.low < bucket.high for bucket in buckets):
        outline = "".join(_band(stretch, x, y) for stretch in stretches)
        parts.append(element("path", {"class": "band", "d": outline}))
    line = "".join(_line([(bucket.step, bucket.mean) for bucket in stretch], x, y) for stretch in stretches)
    parts.append(element("path", {"class": "line", "d": line}))
    few = len(buckets) <= _MOST_DOTS
    dots = [bucket for stretch in stretches if few or len(stretch) == 1 for bucket in stretch]
    parts += [
        element("circle", {"cx": f"{_x(bucket.step, x):.1f}", "cy": f"{_y(bucket.mean, y):.1f}", "r": "2.2"})
        for bucket in dots
    ]
    return element("g", {"style": f"--c:var(--{curve.colour})"}, *parts)


def _line(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{_x(step, x):.1f} {_y(value, y):.1f}" for step, value in points)


def _band(stretch: Sequence[Bucket], x: Axis, y: Axis) -> str:
    upper = [(bucket.step, bucket.high) for bucket in stretch]
    lower = [(bucket.step, bucket.low) for bucket in reversed(stretch)]
    return _line([*upper, *lower], x, y) + "Z"


def _mark(mark: Mark, x: Axis) -> Html:
    place = _x(mark.step, x)
    return element(
        "g",
        {"class": "mark", "style": f"--c:var(--{_MARK_COLOURS[mark.family]})"},
        element("title", None, mark.text),
        element("path", {"class": "stem", "d": f"M{place:.1f} {_TOP - 3:.0f}V{HEIGHT - _BOTTOM:.0f}"}),
        element("path", {"d": f"M{place - 4:.1f} {_TOP - 10:.0f}h8l-4 7z"}),
    )


def _apart(marks: Sequence[Mark], x: Axis) -> list[Mark]:
    """Of marks of one family on one spot the first: more would only darken it."""
    spots = {(round(_x(mark.step, x) / 3), mark.family): mark for mark in reversed(marks)}
    return list(reversed(spots.values()))


def _points(buckets: Sequence[Bucket], x: Axis) -> list[list[float]]:
    return [_point(bucket, x) for bucket in buckets if not bucket.is_gap]


def _point(bucket: Bucket, x: Axis) -> list[float]:
    steps = [bucket.first] if bucket.first == bucket.last else [bucket.first, bucket.last]
    return [round(_x(bucket.step, x), 1), float(f"{bucket.mean:.5g}"), *steps]


def _first_to_last(buckets: Sequence[Bucket]) -> str:
    finite = [bucket.mean for bucket in buckets if not bucket.is_gap]
    return f"from {format_cell(finite[0])} to {format_cell(finite[-1])}"


def _x(step: float, axis: Axis) -> float:
    return _LEFT + axis.place(step) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)
