"""Sampled responses, each token coloured by log p - log q: where the student disagrees with the teacher."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from minillm_ray.report.colours import DISAGREEMENT_NATS, disagreement
from minillm_ray.report.html import Html, counted, element, join
from minillm_ray.telemetry.samples import Sample

_MAX_TOKENS = 320  # of one response; with the most samples there are, half of what the whole file may weigh
_INVISIBLE = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}


def draw_responses(samples: Sequence[Sample]) -> Html:
    """A legend and a card a sample, in the order given."""
    return join(_legend(), element("div", {"class": "samples"}, *map(_card, samples)))


def _card(sample: Sample) -> Html:
    facts = [
        f"step {sample.step:,}",
        f"prompt {sample.prompt_index}",
        f"weights {sample.weight_version}",
        counted(len(sample.response_tokens), "token") + (", truncated" if sample.truncated else ""),
    ]
    if divergences := [value for value in sample.kl if math.isfinite(value)]:
        facts.append(f"KL {fmean(divergences):.3f}")
    return element(
        "article",
        None,
        element("p", {"class": "facts", "title": f"phase {sample.phase}"}, *_between(" · ", facts)),
        element("p", {"class": "prompt"}, sample.prompt),
        element("p", {"class": "response"}, *_tokens(sample)),
    )


def _between(separator: str, facts: Sequence[str]) -> Iterable[str]:
    for number, fact in enumerate(facts):
        yield from ([separator] if number else [])
        yield element("span", None, fact)


def _tokens(sample: Sample) -> Iterable[Html]:
    numbers = zip(sample.response_tokens, sample.teacher_logprob, sample.student_logprob, sample.kl, strict=True)
    for text, teacher, student, divergence in list(numbers)[:_MAX_TOKENS]:
        difference = teacher - student
        title = f"log p {teacher:.2f}, log q {student:.2f}, difference {difference:+.2f}; KL {divergence:.2f}"
        attributes = {"title": title}
        if name := disagreement(teacher, student):
            attributes["class"] = name
        yield element("b", attributes, _visible(text))
    if (rest := len(sample.response_tokens) - _MAX_TOKENS) > 0:
        yield element("small", None, f" … {rest} more tokens")


def _visible(text: str) -> str:
    """Line breaks and the like get a sign; a token that adds no text is a dot, so that it can be pointed at."""
    return "".join(_INVISIBLE.get(character, character) for character in text) or "·"


def _legend() -> Html:
    edges = [f"{edge:g}" for edge in DISAGREEMENT_NATS]
    student = [element("b", {"class": f"student-{strength}"}, f"−{edge}") for strength, edge in enumerate(edges, 1)]
    teacher = [element("b", {"class": f"teacher-{strength}"}, f"+{edge}") for strength, edge in enumerate(edges, 1)]
    return element(
        "p",
        {"class": "legend"},
        element("span", None, "student likelier"),
        element("span", {"class": "swatches"}, *reversed(student), element("b", None, "0"), *teacher),
        element("span", None, "teacher likelier"),
        element("span", {"class": "unit"}, "log p − log q of each token, in nats, from this value on"),
    )
