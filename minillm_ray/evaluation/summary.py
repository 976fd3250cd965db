"""From what was measured of each response to the figures of one data file.

    responses (text, Rouge-L, length, divergences) ─┐
    references (loss, confidence, divergences)     ─┴─> FileResult: metrics, n-gram counts, exposure bias

A metric of sampled responses has one value a seed, hence a mean and a standard deviation; one of references has one
value. A mean over tokens is the sum over all tokens divided by their number.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from minillm_ray.evaluation.calibration import expected_calibration_error
from minillm_ray.evaluation.exposure_bias import ExposureBias, exposure_bias
from minillm_ray.evaluation.text_metrics import count_ngrams

PerToken = npt.NDArray[np.floating]
NGRAM_SIZES = (1, 2, 3, 4)


@dataclass(frozen=True)
class SequenceDivergence:
    """Of one response of n tokens, nats: reverse_kl float [n], KL(q || p) at each state; forward_kl, KL(p || q)."""

    reverse_kl: PerToken
    forward_kl: PerToken


@dataclass(frozen=True)
class ScoredResponse:
    """One sampled response. rouge_l in percent; divergence: None without a teacher."""

    row: int
    seed: int
    prompt: str
    text: str
    rouge_l: float
    num_tokens: int
    truncated: bool
    divergence: SequenceDivergence | None


@dataclass(frozen=True)
class ReferencePrediction:
    """One model over one reference of n tokens: nll float [n], nats; confidence float [n]; correct bool [n]."""

    nll: PerToken
    confidence: PerToken
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """What one model, the student or the teacher, did: its responses, and its predictions of the references."""

    responses: Sequence[ScoredResponse]
    predictions: Sequence[ReferencePrediction]


@dataclass(frozen=True)
class Measured:
    """One value a seed, or a single one; nan where it is not defined."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for a single value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Metric:
    """One row of the table. name: its key in results.json; teacher: None where it is not the teacher's to have."""

    name: str
    label: str
    unit: str
    model: Measured
    teacher: Measured | None = None


@dataclass(frozen=True)
class FileResult:
    """Everything about one data file.

    ngrams  model or teacher -> n -> (different ones, all) of each seed, in words at white space: behind distinct-n.
    """

    file: str
    num_rows: int
    num_prompts_cut: int
    num_references_truncated: int
    metrics: tuple[Metric, ...]
    ngrams: dict[str, dict[int, list[tuple[int, int]]]] = field(default_factory=dict)
    exposure_bias: ExposureBias | None = None


def summarise(
    *,
    file: str,
    num_rows: int,
    num_prompts_cut: int,
    num_references_truncated: int,
    model: Drawn,
    teacher: Drawn | None,
    reference_divergence: Sequence[SequenceDivergence] | None,
) -> FileResult:
    """The figures of one file. teacher and reference_divergence: both, or neither.

    Raises ValueError unless every row has a response under every seed, of both models.
    """
    drawn = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    by_seed = {who: _by_seed(one.responses, num_rows) for who, one in drawn.items()}
    ngrams = {
        who: {n: [count_ngrams([one.text for one in responses], n) for responses in seeds] for n in NGRAM_SIZES}
        for who, seeds in by_seed.items()
    }

    def over_seeds(name: str, label: str, unit: str, value: Callable[[Sequence[ScoredResponse]], float]) -> Metric:
        return Metric(name, label, unit, *(Measured(tuple(map(value, seeds))) for seeds in by_seed.values()))

    def of_references(
        name: str, label: str, unit: str, value: Callable[[Sequence[ReferencePrediction]], float]
    ) -> Metric:
        return Metric(name, label, unit, *(Measured((value(one.predictions),)) for one in drawn.values()))

    metrics = [
        over_seeds("rouge_l", "Rouge-L", "%", lambda some: statistics.fmean(one.rouge_l for one in some)),
        *(
            Metric(
                f"distinct_{n}",
                f"distinct-{n}",
                "%",
                *(Measured(tuple(_percent(*counts) for counts in counted[n])) for counted in ngrams.values()),
            )
            for n in NGRAM_SIZES
        ),
        over_seeds("response_tokens", "response length", "tokens", _mean_length),
        over_seeds(
            "truncated_percent", "truncated", "%", lambda some: _percent(sum(r.truncated for r in some), len(some))
        ),
        of_references("reference_loss", "loss on references", "nats/token", _mean_loss),
        of_references("calibration_error", "calibration error", "0..1", _calibration_error),
    ]
    if teacher is None or reference_divergence is None:
        return FileResult(file, num_rows, num_prompts_cut, num_references_truncated, tuple(metrics), ngrams)
    for where, label, parts in (
        ("own_responses", "own text", [[_known(one) for one in seed] for seed in by_seed["model"]]),
        ("teacher_responses", "teacher text", [[_known(one) for one in seed] for seed in by_seed["teacher"]]),
        ("references", "references", [list(reference_divergence)]),
    ):
        reverse = tuple(_token_mean([one.reverse_kl for one in part]) for part in parts)
        forward = tuple(_token_mean([one.forward_kl for one in part]) for part in parts)
        metrics += [
            Metric(f"reverse_kl_{where}", f"reverse KL, {label}", "nats/token", Measured(reverse)),
            Metric(f"forward_kl_{where}", f"forward KL, {label}", "nats/token", Measured(forward)),
        ]
    bias = exposure_bias(_step_errors(model.responses, num_rows), _step_errors(teacher.responses, num_rows))
    return FileResult(file, num_rows, num_prompts_cut, num_references_truncated, tuple(metrics), ngrams, bias)


def _by_seed(responses: Sequence[ScoredResponse], num_rows: int) -> list[list[ScoredResponse]]:
    """The responses of each seed. Raises ValueError where one is missing or stands twice."""
    seeds: dict[int, list[ScoredResponse]] = {}
    for response in responses:
        seeds.setdefault(response.seed, []).append(response)
    for seed, some in seeds.items():
        if sorted(one.row for one in some) != list(range(num_rows)):
            raise ValueError(f"seed {seed} has {len(some)} responses; expected one to each of {num_rows} prompts")
    if not seeds:
        raise ValueError(f"no responses; expected one to each of {num_rows} prompts")
    return list(seeds.values())


def _step_errors(responses: Sequence[ScoredResponse], num_rows: int) -> list[list[PerToken]]:
    """KL(p || q) along each response, by prompt."""
    errors: list[list[PerToken]] = [[] for _ in range(num_rows)]
    for response in responses:
        errors[response.row].append(_known(response).forward_kl)
    return errors


def _known(response: ScoredResponse) -> SequenceDivergence:
    if response.divergence is None:
        raise ValueError(
            f"row {response.row}, seed {response.seed} was not scored by the teacher; expected all or none"
        )
    return response.divergence


def _mean_length(responses: Sequence[ScoredResponse]) -> float:
    return statistics.fmean(one.num_tokens for one in responses)


def _mean_loss(predictions: Sequence[ReferencePrediction]) -> float:
    """Cross-entropy a token of each reference, then the mean over references, as in the paper's test loss."""
    return statistics.fmean(float(one.nll.mean()) for one in predictions)


def _calibration_error(predictions: Sequence[ReferencePrediction]) -> float:
    return expected_calibration_error(
        np.concatenate([one.confidence for one in predictions]), np.concatenate([one.correct for one in predictions])
    )


def _token_mean(parts: Sequence[PerToken]) -> float:
    return float(sum(part.sum(dtype=np.float64) for part in parts) / sum(len(part) for part in parts))


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan
