"""A row stays good for as long as the tokens before it: sessions keep those rows, and no others."""

import numpy as np
import pytest
import torch
from scripted.hidden_states import expected_rows

from minillm_ray.teacher.sessions import Session, Sessions

PROMPT = [7, 8, 9]


def ids(*response: int) -> np.ndarray:
    return np.array([*PROMPT, *response], dtype=np.int32)


def session_with(*response: int) -> Session:
    session = Session(len(PROMPT))
    session.extend(ids(*response), expected_rows(ids(*response)), 0)
    return session


def expected(*response: int) -> torch.Tensor:
    """Of the slots that prompt and response predict: the last prompt token's row is the first."""
    return expected_rows(ids(*response))[len(PROMPT) - 1 :]


def test_rows_are_those_of_the_slots_from_the_last_prompt_token_on() -> None:
    """The prompt's own rows predict the prompt, and are dropped."""
    assert torch.equal(session_with(1, 2).rows(0, 3), expected(1, 2))


def test_new_rows_may_begin_before_what_is_here_ends() -> None:
    """An engine recomputes whole blocks: what overlaps is taken once."""
    session = session_with(1, 2)
    session.extend(ids(1, 2, 3, 4), expected_rows(ids(1, 2, 3, 4))[4:], 4)
    assert torch.equal(session.rows(0, 5), expected(1, 2, 3, 4))


def test_a_corrected_token_leaves_its_own_row_and_drops_the_later_ones() -> None:
    """The row that predicts a token does not depend on it."""
    session = session_with(1, 2, 3)
    assert session.keep_common(ids(1, 5, 6)) == len(PROMPT) - 1 + 2
    assert torch.equal(session.rows(0, 9), expected(1, 5)[:2])


@pytest.mark.parametrize(("tokens", "num_slots"), [([7, 8, 9], 1), ([7, 8], 0), ([7, 0, 9, 1, 2, 3], 0), ([], 0)])
def test_what_is_kept_never_reaches_beyond_the_common_beginning(tokens: list[int], num_slots: int) -> None:
    """The prompt alone has one slot; another prompt has none of this one's."""
    session = session_with(1, 2, 3)
    assert session.keep_common(np.array(tokens, dtype=np.int32)) == len(PROMPT) - 1 + num_slots


def test_a_new_session_lacks_the_row_of_the_last_prompt_token_on() -> None:
    """It is the first that predicts a token of the response."""
    assert Session(3).keep_common(ids(1, 2)) == 2


def test_a_session_keeps_no_view_of_the_engines_batch() -> None:
    """It would hold the memory of a whole step."""
    batch = expected_rows(ids(1, 2))
    session = Session(len(PROMPT))
    session.extend(ids(1, 2), batch, 0)
    batch.zero_()
    assert torch.equal(session.rows(0, 3), expected(1, 2))


def test_beyond_the_limit_the_longest_unused_session_goes() -> None:
    """Using one renews it."""
    sessions = Sessions(2)
    first, second = sessions.get("a", 3), sessions.get("b", 3)
    assert sessions.get("a", 3) is first
    sessions.get("c", 3)
    assert (sessions.pop("b"), sessions.pop("a") is first, len(sessions)) == (None, True, 1)
    assert second is not sessions.get("b", 3)


def test_a_name_with_another_prompt_length_begins_anew() -> None:
    """Its rows would stand in the wrong slots."""
    sessions = Sessions(2)
    first = sessions.get("a", 3)
    assert sessions.get("a", 4) is not first
