"""Exposure bias: how much a student's error grows because it reads its own text instead of the teacher's.

    e(s)     = KL(p || q) at state s, the error of one step
    R(l)     = sum_{i<l} E_{prefix ~ q} e(s_i)        l eps(l) = sum_{i<l} E_{prefix ~ p} e(s_i)
    ExAccErr = (R(l) - l eps(l)) / (l eps(l))

Source: the analysis of exposure bias in MiniLLM (arXiv 2306.08543). Sums start at slot 0, the state that predicts
the first response token; there both prefixes are the bare prompt, so ExAccErr(1) is 0. At slot i the mean is taken over
a prompt's responses that are still alive there, then over the prompts that have one. Sampling noise can make the
excess negative, hence the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Errors = Sequence[Sequence[npt.NDArray[np.floating]]]
"""For each prompt, for each response of n tokens to it: e(s_0) .. e(s_{n-1}), float [n], nats."""


@dataclass(frozen=True)
class ExposureBias:
    """Float [L] each; entry l - 1 is that of the first l tokens. L: the longest length that both sides reach.

    student_error, teacher_error  R(l) and l eps(l), nats.
    excess_percent                100 ExAccErr(l); nan where the teacher's side is 0.
    low, high                     95 % interval of excess_percent: percentiles over resampled prompts.
    num_prompts                   int [L]: prompts with a response alive at slot l - 1, on the side that has fewer.
    """

    student_error: npt.NDArray[np.float64]
    teacher_error: npt.NDArray[np.float64]
    excess_percent: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    num_prompts: npt.NDArray[np.int64]


def exposure_bias(
    student_prefixes: Errors, teacher_prefixes: Errors, *, num_resamples: int = 1000, seed: int = 0
) -> ExposureBias:
    """ExAccErr over lengths.

    student_prefixes, teacher_prefixes  Step errors along responses that the student or the teacher drew to the same P
                                        prompts, at least one response of at least one token for each.

    Raises ValueError if the numbers of prompts differ, or a prompt has no response or an empty one.
    """
    if len(student_prefixes) != len(teacher_prefixes) or not student_prefixes:
        raise ValueError(
            f"{len(student_prefixes)} prompts with the student's responses, {len(teacher_prefixes)} with the "
            f"teacher's; expected the same prompts, at least one"
        )
    student, teacher = _mean_errors(student_prefixes), _mean_errors(teacher_prefixes)
    length = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :length], teacher[:, :length]
    num_prompts = len(student)
    once = np.ones((1, num_prompts))
    draws = np.random.default_rng(seed).multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), num_resamples)
    resampled = _excess_percent(_accumulated(student, draws), _accumulated(teacher, draws))
    low, high = _percentiles(resampled, (2.5, 97.5))
    student_error, teacher_error = _accumulated(student, once), _accumulated(teacher, once)
    return ExposureBias(
        student_error=student_error[0],
        teacher_error=teacher_error[0],
        excess_percent=_excess_percent(student_error, teacher_error)[0],
        low=low,
        high=high,
        num_prompts=np.minimum((~np.isnan(student)).sum(0), (~np.isnan(teacher)).sum(0)),
    )


def _mean_errors(errors: Errors) -> npt.NDArray[np.float64]:
    """float [P, L]: the mean over a prompt's responses alive at each slot; nan where none is."""
    if any(not responses or not all(len(response) for response in responses) for responses in errors):
        raise ValueError("a prompt has no response, or an empty one; expected at least one token of one response")
    width = max(len(response) for responses in errors for response in responses)
    means = np.full((len(errors), width), np.nan)
    for prompt, responses in enumerate(errors):
        total, alive = np.zeros(width), np.zeros(width)
        for response in responses:
            total[: len(response)] += response
            alive[: len(response)] += 1
        np.divide(total, alive, out=means[prompt], where=alive > 0)
    return means


def _accumulated(means: npt.NDArray[np.float64], draws: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """float [K, L] for draws [K, P], how often each prompt counts: sums over slots of the mean over prompts alive."""
    alive = draws @ ~np.isnan(means)
    totals = draws @ np.nan_to_num(means)
    return np.cumsum(np.divide(totals, alive, out=np.full(totals.shape, np.nan), where=alive > 0), axis=1)


def _excess_percent(
    student_error: npt.NDArray[np.float64], teacher_error: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    excess = np.full(student_error.shape, np.nan)
    return np.divide(100.0 * (student_error - teacher_error), teacher_error, out=excess, where=teacher_error > 0)


def _percentiles(values: npt.NDArray[np.float64], percents: tuple[float, float]) -> npt.NDArray[np.float64]:
    """float [2, L] over the rows that have a number: a resample may hold no prompt that is alive so late."""
    defined = ~np.isnan(values).all(axis=0)
    found = np.full((2, values.shape[1]), np.nan)
    found[:, defined] = np.nanpercentile(values[:, defined], percents, axis=0)
    return found
