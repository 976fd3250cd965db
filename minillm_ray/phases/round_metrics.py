"""The numbers of a round: what its responses cost to draw, to score and to carry, and how old their weights were."""

from collections.abc import Sequence
from typing import cast

from minillm_ray.mixture.sampler import SamplingCounts
from minillm_ray.pipeline.admission import Ticket
from minillm_ray.pipeline.responses import Response
from minillm_ray.pipeline.training import Round
from minillm_ray.teacher.scorer import ScoreReport


def round_metrics(finished: Round) -> dict[str, float]:
    """By declared name. What was drawn before a resume has no costs and is left out of the shares."""
    responses = finished.responses
    staleness = [finished.version - cast(Ticket, response.key).version for response in responses]
    numbers = {
        "rollout/staleness_versions/mean": sum(staleness) / len(staleness),
        "rollout/staleness_versions/max": float(max(staleness)),
        "weights/publish_and_pull_seconds/total": finished.pull_seconds,
        "pipeline/round_seconds/total": finished.seconds,
    }
    last_drawn = max(response.drawn_at for response in responses)
    drawing_seconds = last_drawn - min(response.began_at for response in responses)
    numbers["rollout/generate_seconds/total"] = drawing_seconds
    numbers["teacher/score_seconds/total"] = max(response.scored_at for response in responses) - last_drawn
    return numbers | _sampling(responses, drawing_seconds) | _scoring(responses)


def _sampling(responses: Sequence[Response], drawing_seconds: float) -> dict[str, float]:
    counts: list[SamplingCounts] = [response.drawn for response in responses if response.drawn is not None]
    num_tokens = sum(count.num_tokens for count in counts)
    if not num_tokens:
        return {}
    return {
        "rollout/tokens_per_second/total": num_tokens / max(drawing_seconds, 1e-9),
        "rollout/corrected_fraction/mean": sum(count.num_corrections for count in counts) / num_tokens,
        "rollout/drawn_tokens_per_token/mean": sum(count.num_student_tokens for count in counts) / num_tokens,
        "rollout/requests_per_token/mean": sum(count.num_student_requests for count in counts) / num_tokens,
    }


def _scoring(responses: Sequence[Response]) -> dict[str, float]:
    reports: list[ScoreReport] = [response.scored for response in responses]
    num_tokens = sum(report.response_tokens for report in reports)
    return {
        "teacher/payload_bytes_per_token/mean": sum(report.payload_bytes for report in reports) / num_tokens,
        "teacher/computed_tokens_per_token/mean": sum(report.engine_tokens for report in reports) / num_tokens,
    }
