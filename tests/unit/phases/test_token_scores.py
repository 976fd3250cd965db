"""Student and teacher over the same tokens, against transformers' own logits for one sequence at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from minillm_ray.phases.token_scores import PromptedSequence, ScoringSettings, TokenScorer

SEQUENCES = [
    PromptedSequence(np.array([4, 1, 2, 0], dtype=np.int32), 2),
    PromptedSequence(np.array([4, 3, 2, 1, 1, 3, 0], dtype=np.int32), 3),
    PromptedSequence(np.array([4, 2, 2], dtype=np.int32), 2),
]
TEMPERATURE = 0.8


@pytest.fixture(params=[1, 1000])
def scorer(request: pytest.FixtureRequest, tiny_folders: Path) -> TokenScorer:
    """Each sequence in a batch of its own, or all in one."""
    settings = ScoringSettings(vocabulary_size=5, temperature=TEMPERATURE, batch_tokens=request.param)
    student, teacher = str(tiny_folders / "student"), str(tiny_folders / "teacher")
    return TokenScorer(student, teacher, settings, device=torch.device("cpu"))


@torch.no_grad()
def logprobs(folder: Path, sequence: PromptedSequence) -> Tensor:
    """[n, V] of the response's tokens, alone and unpadded."""
    logits = AutoModelForCausalLM.from_pretrained(folder)(
        torch.tensor(sequence.token_ids[None].astype(np.int64))
    ).logits
    return (logits[0, sequence.prompt_length - 1 : -1] / TEMPERATURE).log_softmax(-1)


def test_divergences_are_those_of_each_sequence_alone(scorer: TokenScorer, tiny_folders: Path) -> None:
    """In order, whatever the batch; at the temperature."""
    for sequence, found in zip(SEQUENCES, scorer.divergences(SEQUENCES), strict=True):
        q, p = logprobs(tiny_folders / "student", sequence), logprobs(tiny_folders / "teacher", sequence)
        np.testing.assert_allclose(found.reverse_kl, (q.exp() * (q - p)).sum(-1), atol=1e-5)
        np.testing.assert_allclose(found.forward_kl, (p.exp() * (p - q)).sum(-1), atol=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_predictions_are_those_of_the_model_that_was_asked(role: str, scorer: TokenScorer, tiny_folders: Path) -> None:
    found = scorer.predictions(SEQUENCES, of_teacher=role == "teacher")
    for sequence, one in zip(SEQUENCES, found, strict=True):
        expected = logprobs(tiny_folders / role, sequence)
        tokens = sequence.token_ids[sequence.prompt_length :]
        np.testing.assert_allclose(one.nll, -expected[range(len(tokens)), tokens], atol=1e-5)
        np.testing.assert_allclose(one.confidence, expected.max(-1).values.exp(), atol=1e-5)
        assert one.correct.tolist() == (expected.argmax(-1).numpy() == tokens).tolist()


def test_every_sequence_is_counted_once(scorer: TokenScorer) -> None:
    counted: list[int] = []
    scorer.on_scored = counted.append
    scorer.divergences(SEQUENCES)
    assert sum(counted) == len(SEQUENCES)
