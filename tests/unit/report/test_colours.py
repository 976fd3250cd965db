"""Colours that can be read in both schemes, and a scale whose signs cannot be mixed up."""

import math
from collections.abc import Mapping

import pytest

from minillm_ray.report.colours import DARK, LIGHT, css_variables, disagreement

SCHEMES = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@SCHEMES
def test_text_is_legible_on_every_background(palette: Mapping[str, str]) -> None:
    """Contrast at least 4.5: WCAG 2.1, 1.4.3."""
    backgrounds = ["page", "card", *(name for name in palette if name.startswith(("student-", "teacher-")))]
    assert min(contrast(palette["ink"], palette[name]) for name in backgrounds) >= 4.5
    assert min(contrast(palette["muted"], palette[name]) for name in ("page", "card")) >= 4.5
    assert contrast(palette["notice-ink"], palette["notice"]) >= 4.5
    assert contrast(palette["red"], palette["page"]) >= 4.5


@SCHEMES
def test_lines_stand_out_from_the_card(palette: Mapping[str, str]) -> None:
    """Contrast at least 3: WCAG 2.1, 1.4.11."""
    for name in ("blue", "orange", "green", "violet", "olive", "red", "muted"):
        assert contrast(palette[name], palette["card"]) >= 3, name


@SCHEMES
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_stronger_disagreement_stands_out_more(palette: Mapping[str, str], side: str) -> None:
    strengths = [contrast(palette[f"{side}-{strength}"], palette["card"]) for strength in (1, 2, 3, 4)]
    assert strengths == sorted(strengths)


def test_the_sign_says_which_of_the_two_finds_the_token_likelier() -> None:
    """log p - log q above 0: the teacher."""
    assert disagreement(teacher_logprob=-1.0, student_logprob=-1.6) == "teacher-2"
    assert disagreement(teacher_logprob=-9.0, student_logprob=-1.0) == "student-4"
    assert disagreement(teacher_logprob=-1.0, student_logprob=-1.05) == ""
    assert disagreement(teacher_logprob=-math.inf, student_logprob=-1.0) == "student-4"
    assert disagreement(teacher_logprob=math.nan, student_logprob=-1.0) == ""


def test_both_schemes_have_the_same_colours() -> None:
    assert set(LIGHT) == set(DARK)
    assert css_variables().count("--ink:") == 4
