"""What a round cost, from the reports of its responses."""

import pytest

from minillm_ray.mixture.sampler import SamplingCounts
from minillm_ray.phases.round_metrics import round_metrics
from minillm_ray.pipeline.admission import Ticket
from minillm_ray.pipeline.ledger import Assignment
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.responses import Response
from minillm_ray.pipeline.training import Round
from minillm_ray.teacher.scorer import ScoreReport
from minillm_ray.telemetry.declarations import require_declared


def response(
    place: int, *, tokens: int, version: int = 5, began: float = 0.0, drawn: float = 1.0, scored: float = 2.0
) -> Response:
    """`tokens` tokens, each of which cost two of the student's, three of the teacher's engine and ten bytes."""
    made = Response(Ticket(Assignment(place, 0, place), version), Task("train", place, 0, mixed=True), "", None, None)
    made.drawn = SamplingCounts(
        num_tokens=tokens,
        num_coins=tokens,
        num_corrections=1,
        num_student_tokens=2 * tokens,
        num_student_requests=4,
        num_teacher_requests=4,
    )
    made.scored = ScoreReport(response_tokens=tokens, payload_bytes=10 * tokens, engine_tokens=3 * tokens, requests=4)
    made.began_at, made.drawn_at, made.scored_at = began, drawn, scored
    return made


def metrics(*responses: Response, version: int = 5) -> dict[str, float]:
    return round_metrics(Round(responses, version, seconds=9.0, pull_seconds=0.5))


def test_every_number_has_a_declared_name() -> None:
    """A misspelt one would be refused when it is written, hours later."""
    for name in metrics(response(0, tokens=3)):
        require_declared(name)


def test_shares_are_of_all_tokens_and_not_means_of_responses() -> None:
    """One response of 3 tokens and one of 37: 2 corrections and 8 requests in 40."""
    numbers = metrics(response(0, tokens=3), response(1, tokens=37))
    assert numbers["rollout/corrected_fraction/mean"] == 2 / 40
    assert numbers["rollout/requests_per_token/mean"] == 8 / 40
    assert numbers["rollout/drawn_tokens_per_token/mean"] == 2.0
    assert numbers["teacher/payload_bytes_per_token/mean"] == 10.0
    assert numbers["teacher/computed_tokens_per_token/mean"] == 3.0


def test_drawing_lasts_from_the_first_beginning_to_the_last_end_and_scoring_from_there() -> None:
    """Responses overlap: 2.0 to 6.0 for 20 tokens, and the last score at 7.5."""
    first = response(0, tokens=5, began=2.0, drawn=3.0, scored=7.5)
    last = response(1, tokens=15, began=2.5, drawn=6.0, scored=6.5)
    numbers = metrics(first, last)
    assert numbers["rollout/generate_seconds/total"] == 4.0
    assert numbers["rollout/tokens_per_second/total"] == 5.0
    assert numbers["teacher/score_seconds/total"] == 1.5


def test_staleness_counts_versions_since_a_response_was_begun() -> None:
    """The round of version 5 trains responses of versions 5, 4 and 3."""
    numbers = metrics(*(response(place, tokens=1, version=5 - place) for place in range(3)))
    assert numbers["rollout/staleness_versions/mean"] == 1.0
    assert numbers["rollout/staleness_versions/max"] == 2.0


def test_a_response_from_before_a_resume_is_scored_again_but_cost_nothing_to_draw() -> None:
    """Its tokens are in the teacher's shares alone; with no other there are no shares of drawing."""
    kept = response(0, tokens=30)
    kept.drawn = None
    numbers = metrics(kept, response(1, tokens=10))
    assert numbers["rollout/requests_per_token/mean"] == 4 / 10
    assert numbers["teacher/payload_bytes_per_token/mean"] == pytest.approx(10.0)
    assert not any(name.startswith("rollout/requests") for name in metrics(kept))
