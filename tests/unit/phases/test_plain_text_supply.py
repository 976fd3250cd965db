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


def test_every_chunk_comes_once_an_epoch() -> None:
    """Five chunks, two a step: ten steps are four whole epochs, each in an order of its own."""
    supply = PlainTextSupply(chunks(5), chunks_a_step=2, seed=0, teacher=None)
    order = [text.prompt_index for _ in range(10) for text in supply.next()[0]]
    epochs = [tuple(order[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_chunk_trains_every_token_but_its_first() -> None:
    """The first token is what the second is predicted from."""
    (text,), _ = PlainTextSupply(chunks(1), chunks_a_step=1, seed=0, teacher=None).next()
    assert text.prompt_ids.tolist() == [0]
    assert text.response_ids.tolist() == [1, 2]


def test_a_teacher_scores_the_chunks_that_are_handed_out() -> None:
    """Without one the payloads are empty, with one they are its own, in order."""
    teacher = SimpleNamespace(score=lambda texts: ([f"scored {text.prompt_index}" for text in texts], 0))
    texts, payloads = PlainTextSupply(chunks(3), chunks_a_step=3, seed=0, teacher=teacher).next()  # type: ignore[arg-type]
    assert payloads == [f"scored {text.prompt_index}" for text in texts]
    _, empty = PlainTextSupply(chunks(3), chunks_a_step=2, seed=0, teacher=None).next()
    assert [payload.data.shape for payload in empty] == [(2, 0), (2, 0)]
