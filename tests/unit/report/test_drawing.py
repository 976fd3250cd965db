"""A figure shows what is there, where it is."""

import json
import re
from html import unescape
from typing import Any

from minillm_ray.report.catalogue import Curve, FigurePlan
from minillm_ray.report.drawing import draw_figure
from minillm_ray.report.marks import Mark

PLAN = FigurePlan("Loss", "nats", (Curve("loss", "total"), Curve("text", "text", "olive")))


def rows_of(**series: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"step": step} | dict(zip(series, values, strict=True))
        for step, values in enumerate(zip(*series.values(), strict=True), start=1)
    ]


def line_of(figure: str) -> str:
    (found,) = re.findall(r'<path class="line" d="([^"]*)"', figure)
    return found


def test_a_gap_breaks_the_line() -> None:
    """Two stretches, and the last value in the legend."""
    figure = draw_figure(PLAN, rows_of(loss=[1.0, 2.0, None, 1.0, 0.5]), [])
    assert figure is not None
    assert line_of(figure).count("M") == 2
    assert "nan" not in figure.lower()
    assert "<output>0.5000</output>" in figure


def test_a_figure_without_a_finite_value_is_not_drawn() -> None:
    assert draw_figure(PLAN, rows_of(loss=[None, None]), []) is None
    assert draw_figure(PLAN, rows_of(other=[1.0]), []) is None


def test_larger_values_are_higher_and_later_steps_further_right() -> None:
    figure = draw_figure(PLAN, rows_of(loss=[0.0, 1.0]), [])
    assert figure is not None
    (x1, y1), (x2, y2) = [tuple(map(float, point.split())) for point in line_of(figure)[1:].split("L")]
    assert x1 < x2
    assert y1 > y2


def test_a_spike_of_a_thinned_run_stays_in_the_band() -> None:
    """1,000 steps at 1 and one at 50: the axis reaches 50, and the band goes up there."""
    figure = draw_figure(PLAN, rows_of(loss=[1.0] * 500 + [50.0] + [1.0] * 500), [])
    assert figure is not None
    (band,) = re.findall(r'<path class="band" d="([^"]*)"', figure)
    heights = [float(point.split()[1].rstrip("Z")) for point in re.split("[ML]", band)[1:]]
    assert max(heights) - min(heights) > 0.8 * 150
    assert len(re.split("[ML]", line_of(figure))) < 305


def test_the_points_for_the_script_are_those_of_the_line() -> None:
    figure = draw_figure(PLAN, rows_of(loss=[0.25, 0.5], text=[None, 2.0]), [])
    assert figure is not None
    (found,) = re.findall(r'data-curves="([^"]*)"', figure)
    curves = json.loads(unescape(found))
    assert [[point[1:] for point in curve] for curve in curves] == [[[0.25, 1], [0.5, 2]], [[2.0, 2]]]


def test_an_event_is_a_mark_with_its_words_and_those_on_one_spot_are_one() -> None:
    """A hundred skipped steps in a row must not hide the curve."""
    marks = [Mark(1.5, "death", "rollout <lost>"), *(Mark(3.0, "skipped step", f"step {n}") for n in range(100))]
    figure = draw_figure(PLAN, rows_of(loss=[1.0, 2.0, 3.0]), marks)
    assert figure is not None
    assert figure.count('class="mark"') == 2
    assert "<title>rollout &lt;lost&gt;</title>" in figure
    assert "<title>step 0</title>" in figure


def test_a_logarithmic_figure_falls_back_where_a_value_is_not_positive() -> None:
    """A norm of 0 has no logarithm."""
    plan = FigurePlan("Norm", "", (Curve("loss", "norm"),), from_zero=False, scale="log")
    for values in ([0.0, 10.0], [0.1, 1000.0]):
        assert draw_figure(plan, rows_of(loss=values), []) is not None
