"""The report's colours, once for light and once for dark, as CSS variables.

A role and a loss term keep their colour throughout. Series colours have a contrast of at least 3 to the page, text and
every token's background one of at least 4.5 to each other (WCAG 2.1, 1.4.3 and 1.4.11).
"""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#fbfaf8",
    "card": "#ffffff",
    "ink": "#1d1f24",
    "muted": "#646a75",
    "hairline": "#e4e2dd",
    "axis": "#a9a69f",
    "blue": "#2563b8",
    "orange": "#b9560b",
    "green": "#12806a",
    "violet": "#7a4bb5",
    "olive": "#7c7300",
    "red": "#c0262d",
    "notice": "#fdf3dc",
    "notice-ink": "#6b4700",
    "student-4": "#f2956b",
    "student-3": "#f8b697",
    "student-2": "#fcd5c3",
    "student-1": "#fdebe2",
    "teacher-1": "#e4eefb",
    "teacher-2": "#c8ddf7",
    "teacher-3": "#a0c5f2",
    "teacher-4": "#74a9ec",
}
DARK: Mapping[str, str] = {
    "page": "#14161a",
    "card": "#1b1e23",
    "ink": "#e7e8ea",
    "muted": "#9aa1ac",
    "hairline": "#2c3037",
    "axis": "#5b616b",
    "blue": "#74a7f2",
    "orange": "#f0985a",
    "green": "#4cc2a5",
    "violet": "#b695f0",
    "olive": "#cbbd4a",
    "red": "#f2777c",
    "notice": "#3a2e12",
    "notice-ink": "#f3d999",
    "student-4": "#9a4117",
    "student-3": "#74361a",
    "student-2": "#532d1d",
    "student-1": "#37251e",
    "teacher-1": "#1f2b3c",
    "teacher-2": "#1f3a5f",
    "teacher-3": "#214d85",
    "teacher-4": "#2562b0",
}

DISAGREEMENT_NATS = (0.1, 0.5, 1.0, 3.0)
"""Where |log p - log q| of a token goes from one strength to the next; below the first the token is not coloured."""

_RULE = ":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}:root[data-theme=light]{{{light}}}\
:root[data-theme=dark]{{{dark}}}"


def css_variables() -> str:
    """Both schemes: the system's choice, and `data-theme` on the root element above it."""

    def declarations(scheme: str, palette: Mapping[str, str]) -> str:
        return f"color-scheme:{scheme};" + "".join(f"--{name}:{value};" for name, value in palette.items())

    return _RULE.format(light=declarations("light", LIGHT), dark=declarations("dark", DARK))


def disagreement(teacher_logprob: float, student_logprob: float) -> str:
    """The palette's name for a token: "teacher-3" where the teacher finds it likelier, "student-3" where the student.

    "" where the two agree to 0.1 nats, and where either is not a number.
    """
    difference = teacher_logprob - student_logprob
    strength = sum(abs(difference) >= edge for edge in DISAGREEMENT_NATS)
    if not strength:
        return ""
    return f"{'teacher' if difference > 0 else 'student'}-{strength}"
