"""Chunks of plain text: each trained once, in order, and scored beforehand where the text loss asks for it."""

from typing import Any

from minillm_ray.pipeline.plain_text import TextOrders
from minillm_ray.pipeline.responses import Response


class Supply:
    """Chunk number n is the string "chunk n"."""

    chunks_a_step = 2

    def __init__(self, *, with_teacher: bool) -> None:
        self.with_teacher = with_teacher

    def chunk(self, number: int) -> str:
        return f"chunk {number}"

    def no_payload(self) -> str:
        return "none"


class Scoring:
    """Responses that are asked for scores, and give them when told."""

    def __init__(self) -> None:
        self.asked: list[Response] = []

    def score(self, key: Any, task: Any, trajectory: Any) -> None:
        self.asked.append(Response(key, task, "", None, None, trajectory, payload=f"score of {trajectory}"))

    def numbers(self) -> list[Any]:
        return [response.key for response in self.asked]


def orders(*, with_teacher: bool = True) -> tuple[TextOrders, Scoring]:
    scoring = Scoring()
    return TextOrders(Supply(with_teacher=with_teacher), scoring, steps_a_round=2), scoring  # type: ignore[arg-type]


def test_without_plain_text_there_is_nothing_to_wait_for() -> None:
    """And steps get none."""
    texts = TextOrders(None, Scoring(), steps_a_round=2)  # type: ignore[arg-type]
    assert texts.order()
    assert texts.take() == ([], [])


def test_where_the_teacher_is_not_asked_chunks_are_taken_in_order() -> None:
    """Each stands beside the reference for no payload."""
    texts, scoring = orders(with_teacher=False)
    assert texts.order()
    assert texts.take() == (["chunk 0", "chunk 1"], ["none", "none"])
    assert texts.take()[0] == ["chunk 2", "chunk 3"]
    assert (texts.num_taken, scoring.asked) == (4, [])


def test_a_round_waits_until_all_its_chunks_are_scored() -> None:
    """They come back in any order and are taken in theirs."""
    texts, scoring = orders()
    assert not texts.order()
    assert scoring.numbers() == [0, 1, 2, 3]
    for response in reversed(scoring.asked[1:]):
        texts.scored(response)
        assert not texts.order()
    texts.scored(scoring.asked[0])
    assert texts.order()
    assert texts.take() == (["chunk 0", "chunk 1"], ["score of chunk 0", "score of chunk 1"])
    assert scoring.numbers() == [0, 1, 2, 3]


def test_a_lost_chunk_is_ordered_again() -> None:
    """It alone."""
    texts, scoring = orders()
    texts.order()
    texts.lost(scoring.asked[2])
    texts.order()
    assert scoring.numbers() == [0, 1, 2, 3, 2]


def test_what_a_step_took_can_be_given_back() -> None:
    """The step was not made: the same chunks are scored anew and taken again."""
    texts, scoring = orders()
    texts.order()
    for response in scoring.asked:
        texts.scored(response)
    first = texts.take()
    texts.give_back()
    assert not texts.order()
    for response in scoring.asked[4:]:
        texts.scored(response)
    assert texts.order()
    assert texts.take() == first


def test_a_score_that_nobody_waits_for_is_forgotten() -> None:
    """Of a chunk that was ordered twice and taken in between: it would be kept for ever."""
    texts, scoring = orders()
    texts.order()
    texts.give_back()
    texts.go_to(0)
    texts.order()
    for response in scoring.asked[4:]:
        texts.scored(response)
    texts.take()
    texts.take()
    for response in scoring.asked[:4]:
        texts.scored(response)
    assert texts._scored == {}


def test_a_resumed_run_goes_on_with_the_next_chunk() -> None:
    """As many as the checkpoint says were trained."""
    texts, scoring = orders()
    texts.go_to(6)
    texts.order()
    assert scoring.numbers() == [6, 7, 8, 9]
