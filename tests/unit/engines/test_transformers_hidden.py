"""The fallback engine: a padded batch gives each sequence the hidden states that it has alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripted.models import VOCABULARY, tiny, word_tokenizer
from torch import Tensor

from minillm_ray.engines import transformers_hidden
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.heads import head_logits, load_head
from minillm_ray.engines.model_folder import save_model_folder
from minillm_ray.engines.transformers_hidden import TransformersEngine, reference

SEQUENCES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
Folder = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a tiny model by architecture."""
    root = tmp_path_factory.mktemp("models")

    def write(architecture: str) -> str:
        path = root / architecture
        if not path.is_dir():
            save_model_folder(tiny(architecture), word_tokenizer(), Path(path))
        return str(path)

    return write


def engine(model: str) -> TransformersEngine:
    return TransformersEngine(
        EngineSettings(
            model=model,
            dtype="float32",
            max_model_tokens=64,
            tensor_parallel=1,
            device="cpu",
            vocabulary_size=VOCABULARY,
            seed=0,
        )
    )


def logits(model: str, hidden: Tensor) -> Tensor:
    return head_logits(hidden, load_head(model, vocabulary_size=VOCABULARY, dtype=torch.float32))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "cohere", "phi"])
def test_rows_times_the_head_are_the_models_own_logits(architecture: str, folder: Folder) -> None:
    """Of sequences of unequal length in one batch, each as transformers has it alone, with every kind of head."""
    model = folder(architecture)
    for token_ids, rows in zip(SEQUENCES, engine(model).hidden_states(SEQUENCES), strict=True):
        expected = reference(model, token_ids, dtype=torch.float32, vocabulary_size=VOCABULARY)
        torch.testing.assert_close(rows, expected.hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits(model, rows), expected.logits, atol=1e-5, rtol=1e-5)


def test_every_row_is_computed_also_where_a_cache_might_be_read(folder: Folder) -> None:
    """There is none."""
    one = engine(folder("llama"))
    one.add("a", SEQUENCES[0], num_known=3)
    (rows,) = one.step()
    assert (rows.request_id, rows.first, len(rows.hidden), one.block_tokens) == ("a", 0, 3, 1)


def test_a_batch_ends_where_its_padding_would_be_too_much(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 tokens a step: 2 x 3, then 7 alone, then 2; in the order of asking."""
    monkeypatch.setattr(transformers_hidden, "_STEP_TOKENS", 8)
    one = engine(folder("llama"))
    for number, token_ids in enumerate(SEQUENCES):
        one.add(str(number), token_ids)
    steps = []
    while one.has_unfinished():
        steps.append([rows.request_id for rows in one.step()])
    assert steps == [["0", "1"], ["2"], ["3"]]


def test_an_aborted_request_is_never_computed(folder: Folder) -> None:
    """It is gone from the queue."""
    one = engine(folder("llama"))
    for number, token_ids in enumerate(SEQUENCES):
        one.add(str(number), token_ids)
    one.abort(["1", "2", "of another engine"])
    assert [rows.request_id for rows in one.step()] == ["0", "3"]


def test_the_reference_leaves_padding_rows_out(folder: Folder) -> None:
    """V is the tokenizer's."""
    found = reference(folder("llama"), [1, 2], dtype=torch.float32, vocabulary_size=VOCABULARY - 3)
    assert found.logits.shape == (2, VOCABULARY - 3)
