"""Which figures a phase gets: those named here whose metrics it has, and one for each other metric it wrote.

A role and a loss term have the same colour in every figure.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

_TEACHER, _ROLLOUT, _LEARNER = "orange", "blue", "green"
_COLOURS = ("blue", "orange", "green", "violet", "olive", "red")
_ROLES = (("rollout", _ROLLOUT), ("teacher", _TEACHER), ("learner", _LEARNER))


@dataclass(frozen=True)
class Curve:
    """One line of a figure. label: what it is among the lines of its figure; colour: a name of the palette."""

    metric: str
    label: str
    colour: str = "blue"


@dataclass(frozen=True)
class FigurePlan:
    """A figure before its data. from_zero: 0 is on its axis; scale: logarithmic only where every value is positive."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    from_zero: bool = True
    scale: Literal["linear", "log"] = "linear"


_PLANS = (
    FigurePlan("Reverse KL", "nats a token", (Curve("objective/kl_nats_per_token/mean", "KL(q || p)"),)),
    FigurePlan(
        "Reverse KL on held-out prompts",
        "nats a token",
        (Curve("evaluation/reverse_kl_nats_per_token/mean", "KL(q || p)"),),
    ),
    FigurePlan(
        "Supervised loss",
        "nats a token",
        (
            Curve("learner/supervised_loss_nats_per_token/train", "training"),
            Curve("learner/supervised_loss_nats_per_token/validation", "validation", "orange"),
        ),
        from_zero=False,
    ),
    FigurePlan(
        "Loss by term",
        "nats a token",
        (
            Curve("objective/loss/total", "total", "muted"),
            Curve("objective/loss/single_step", "single step", "blue"),
            Curve("objective/loss/long_term", "long term", "violet"),
            Curve("objective/loss/text", "text", "olive"),
        ),
    ),
    FigurePlan("Response length", "tokens", (Curve("rollout/response_tokens/mean", "mean"),)),
    FigurePlan("Truncated", "share of responses", (Curve("rollout/truncated_fraction/mean", "truncated"),)),
    FigurePlan("Entropy", "nats a token", (Curve("objective/entropy_nats_per_token/mean", "of the student"),)),
    FigurePlan("Clip fraction", "share of tokens", (Curve("objective/clip_fraction/mean", "clipped", "violet"),)),
    FigurePlan(
        "Effective sample size",
        "share of the sample",
        (Curve("objective/effective_sample_size_fraction/mean", "of the weights", "violet"),),
        from_zero=False,
    ),
    FigurePlan(
        "What the teacher's top k hold",
        "share",
        (
            Curve("objective/topk_student_mass/mean", "of q", "blue"),
            Curve("objective/topk_teacher_mass/mean", "of p", _TEACHER),
            Curve("objective/topk_overlap/mean", "of q's top k", "violet"),
        ),
        from_zero=False,
    ),
    FigurePlan(
        "Reverse KL along the response",
        "nats a token",
        (
            Curve("objective/kl_nats_per_token/decile_0", "first tenth", "blue"),
            Curve("objective/kl_nats_per_token/decile_4", "fifth", "green"),
            Curve("objective/kl_nats_per_token/decile_9", "last", "orange"),
        ),
    ),
    FigurePlan(
        "Gradient norm",
        "before clipping",
        (Curve("learner/gradient_norm/global", "global", "green"),),
        from_zero=False,
        scale="log",
    ),
    FigurePlan("Speed", "response tokens a second", (Curve("rollout/tokens_per_second/total", "all workers"),)),
    FigurePlan(
        "Where a step's time goes",
        "seconds",
        (
            Curve("rollout/generate_seconds/total", "generate", _ROLLOUT),
            Curve("teacher/score_seconds/total", "score", _TEACHER),
            Curve("learner/step_seconds/total", "learn", _LEARNER),
            Curve("weights/publish_and_pull_seconds/total", "weights", "violet"),
        ),
    ),
    *(
        FigurePlan(
            title, "seconds a step", tuple(Curve(f"pipeline/{what}_seconds/{role}", role, c) for role, c in _ROLES)
        )
        for title, what in (
            ("Busy, by role", "busy"),
            ("Idle: waiting for input", "waiting_input"),
            ("Idle: waiting for weights", "waiting_weights"),
        )
    ),
)
_NOT_DRAWN = ("step", "phase", "time", "objective/kl_nats_per_token/decile_*")
_ROUGE = "*rouge_l*"


def plans_for(metrics: Collection[str]) -> list[FigurePlan]:
    """The figures named here, with the curves that the phase has; a figure without one is left out."""
    plans = [_with_curves(plan, [curve for curve in plan.curves if curve.metric in metrics]) for plan in _PLANS]
    rouge = [metric for metric in metrics if fnmatchcase(metric, _ROUGE)]
    if rouge:
        plans.insert(1, FigurePlan("Rouge-L", "0 to 100", _coloured(rouge), from_zero=False))
    return [plan for plan in plans if plan.curves]


def other_plans_for(metrics: Collection[str]) -> list[FigurePlan]:
    """A figure for each quantity that `plans_for` leaves out, its statistics together."""
    drawn = {curve.metric for plan in plans_for(metrics) for curve in plan.curves}
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        if metric not in drawn and not any(fnmatchcase(metric, pattern) for pattern in _NOT_DRAWN):
            groups.setdefault(metric.rpartition("/")[0] or metric, []).append(metric)
    return [
        FigurePlan(_title(quantity), quantity.partition("/")[0], _coloured(some)) for quantity, some in groups.items()
    ]


def _title(quantity: str) -> str:
    """objective/ratio -> Ratio."""
    words = (quantity.partition("/")[2] or quantity).replace("_", " ")
    return words[:1].upper() + words[1:]


def _coloured(metrics: Sequence[str]) -> tuple[Curve, ...]:
    return tuple(
        Curve(metric, metric.rpartition("/")[2].replace("_", " "), _COLOURS[number % len(_COLOURS)])
        for number, metric in enumerate(metrics)
    )


def _with_curves(plan: FigurePlan, curves: Sequence[Curve]) -> FigurePlan:
    return FigurePlan(plan.title, plan.unit, tuple(curves), plan.from_zero, plan.scale)
