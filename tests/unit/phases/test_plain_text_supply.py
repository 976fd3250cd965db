"""Plain text for the language-modelling term: each chunk once an epoch, every token but its first trained."""

from types import SimpleNamespace

import numpy as np
import pytest

from minillm_ray.data import TextChunks
from minillm_ray.data.sets import lay_end_to_end
from minillm_ray.phases import plain_text
from minillm_ray.phases.plain_text import PlainTextSupply


@pytest.fixture(autouse=True)
def references_are_the_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "ray", SimpleNamespace(put=lambda item: item))


def chunks(count: int) -> TextChunks:
    """Chunk k is [10k, 10k + 1, 10k + 2]."""
    token_ids, offsets = lay_end_to_end([np.arange(10 * k, 10 * k + 3, dtype=np.int32) for k in range(count)])
    return TextChunks(token_ids, offsets, num_documents=count, fingerprint="")


def supply(count: int, *, with_teacher: bool = False) -> PlainTextSupply:
    return PlainTextSupply(chunks(count), chunks_a_step=2, seed=0, with_teacher=with_teacher)


def test_every_chunk_comes_once_an_epoch() -> None:
    """Five chunks: twenty numbers are four whole epochs, each in an order of its own."""
    texts = supply(5)
    order = [texts.chunk(number).prompt_index for number in range(20)]
    epochs = [tuple(order[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_number_names_the_same_chunk_whoever_asks_and_whenever() -> None:
    """A run that resumes knows only how many chunks it has trained, and goes on with the next."""
    texts = supply(5)
    in_order = [texts.chunk(number).prompt_index for number in range(12)]
    assert [supply(5).chunk(number).prompt_index for number in reversed(range(12))] == in_order[::-1]


def test_a_chunk_trains_every_token_but_its_first() -> None:
    """The first token is what the second is predicted from."""
    text = supply(1).chunk(0)
    assert text.prompt_ids.tolist() == [0]
    assert text.response_ids.tolist() == [1, 2]


def test_without_a_teacher_a_chunk_goes_with_an_empty_payload() -> None:
    """Nobody scores it, and nothing is carried."""
    assert supply(3).no_payload().nbytes == 0
