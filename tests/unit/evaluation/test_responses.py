"""One response to each prompt and seed, or an error: with an engine that does as it is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from minillm_ray.config.errors import RunError
from minillm_ray.evaluation.responses import Response, sample_responses


@dataclass(frozen=True)
class Finished:
    """What an engine hands back."""

    request_id: str
    token_ids: np.ndarray
    truncated: bool


PROMPTS = [np.array([7], dtype=np.int32), np.array([8, 9], dtype=np.int32)]


class Engine:
    """Finishes requests in reverse; a response is the seed's last digits and the prompt's length."""

    def __init__(self, *, loses: str = "", repeats: str = "", empties: str = "") -> None:
        self.queue: list[tuple[str, list[int], int]] = []
        self.loses, self.repeats, self.empties = loses, repeats, empties

    def add(self, request_id: str, token_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        assert max_new_tokens == 5
        self.queue.append((request_id, list(token_ids), seed))

    def step(self) -> list[Finished]:
        request_id, prompt, seed = self.queue.pop()
        if request_id == self.loses:
            return []
        tokens = np.array([] if request_id == self.empties else [seed % 1000, len(prompt)], dtype=np.int32)
        finished = Finished(request_id, tokens, truncated=len(prompt) > 1)
        return [finished] * (2 if request_id == self.repeats else 1)

    def has_unfinished(self) -> bool:
        return bool(self.queue)


def sample(engine: Engine, prompts: list[np.ndarray] = PROMPTS, seeds: Sequence[int] = (10, 20)) -> list[Response]:
    return sample_responses(engine, prompts, seeds=seeds, max_new_tokens=5)


def test_responses_come_by_seed_then_row_whatever_order_they_finish_in() -> None:
    found = sample(Engine())
    assert [(one.seed, one.row, one.token_ids[1], one.truncated) for one in found] == [
        (10, 0, 1, False),
        (10, 1, 2, True),
        (20, 0, 1, False),
        (20, 1, 2, True),
    ]


def test_a_response_depends_on_its_row_and_seed_alone() -> None:
    """Not on the other seeds or on what is sampled beside it; and no two are drawn with the same random numbers."""
    together, alone = sample(Engine()), sample(Engine(), PROMPTS[:1], seeds=[20])
    assert alone[0].token_ids.tolist() == together[2].token_ids.tolist()
    assert len({one.token_ids[0] for one in together}) == 4


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Engine(loses="2"), "finished 3 of 4"),
        (Engine(repeats="1"), "two responses to row 1"),
        (Engine(empties="0"), "no token to row 0"),
    ],
)
def test_a_response_that_is_missing_doubled_or_empty_is_an_error(engine: Engine, says: str) -> None:
    with pytest.raises(RunError, match=says):
        sample(engine)
