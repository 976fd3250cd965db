"""The start-up probe passes what is right and stops what is silently wrong, with the numbers and the likely causes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted.models import VOCABULARY, tiny, word_tokenizer
from torch import Tensor, nn

from minillm_ray.config import InputError
from minillm_ray.data.trajectory import Payload
from minillm_ray.engines.generation import EngineSettings
from minillm_ray.engines.heads import load_head
from minillm_ray.engines.hidden_payload import encode_hidden
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine
from minillm_ray.engines.loop import EngineLoop
from minillm_ray.engines.model_folder import save_model_folder
from minillm_ray.engines.sampled_payload import encode_sampled
from minillm_ray.engines.topk_payload import encode_topk
from minillm_ray.engines.transformers_hidden import TransformersEngine, reference
from minillm_ray.objective import Head
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.probe import Probe, ProbeResult, probe_trajectory
from minillm_ray.teacher.scorer import Encode, TeacherScorer

TEMPERATURE = 0.8
NUM_IDS = VOCABULARY - 4
"""Of the tokenizer: the model's last rows are padding."""
TRAJECTORY = probe_trajectory(NUM_IDS, block_tokens=8, max_tokens=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model by architecture."""
    root = tmp_path_factory.mktemp("probe")

    def folder(architecture: str) -> str:
        path = root / architecture
        if not path.is_dir():
            save_model_folder(tiny(architecture), word_tokenizer(), Path(path))
        return str(path)

    return folder


class Bed:
    """The scoring path of one model, each part of which can be spoilt before the probe runs."""

    def __init__(self, model: str, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.dtype = dtype
        self.head = load_head(model, vocabulary_size=NUM_IDS, dtype=torch.float32)
        self.encode: Encode = lambda hidden, response_ids: encode_hidden(hidden, self.dtype)
        self.engine: HiddenStateEngine = TransformersEngine(
            EngineSettings(
                model=model,
                dtype=str(dtype).removeprefix("torch."),
                max_model_tokens=64,
                tensor_parallel=1,
                device="cpu",
                vocabulary_size=NUM_IDS,
                seed=0,
            )
        )

    def run(self, *, with_reference: bool = True) -> ProbeResult:
        async def body() -> ProbeResult:
            scorer = TeacherScorer(
                EngineLoop(lambda: self.engine, name="probe"),
                self.head,
                encode=self.encode,
                dtype=self.dtype,
                sampling=Sampling(TEMPERATURE),
            )
            other = reference(self.model, TRAJECTORY.token_ids.tolist(), dtype=self.dtype, vocabulary_size=NUM_IDS)
            probe = Probe(self.model, self.head, TEMPERATURE, self.dtype)
            return await probe.run(scorer, TRAJECTORY, other if with_reference else None)

        return asyncio.run(body())

    def refusal(self, *, with_reference: bool = True) -> str:
        with pytest.raises(InputError) as caught:
            self.run(with_reference=with_reference)
        return str(caught.value)


def test_the_sequence_spans_the_vocabulary_and_more_than_two_blocks() -> None:
    """The first and the last id of the tokenizer, and the length that fits."""
    ids = TRAJECTORY.token_ids
    assert (ids.min(), ids.max(), len(ids)) == (0, NUM_IDS - 1, 48)
    assert len(probe_trajectory(1000, block_tokens=32, max_tokens=512).token_ids) == 96
    assert len(probe_trajectory(1000, block_tokens=32, max_tokens=20).token_ids) == 20


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "cohere", "phi"])
def test_a_right_path_passes_for_every_kind_of_head(architecture: str, folders: Callable[[str], str]) -> None:
    """Tied and not, with a bias, a scale or a soft-cap: far below the tolerance."""
    result = Bed(folders(architecture)).run()
    assert result.compared_with == "transformers"
    assert result.relative_error < 1e-5


def test_a_bfloat16_teacher_passes_within_its_own_tolerance(folders: Callable[[str], str]) -> None:
    """Which is wider than float32's."""
    result = Bed(folders("llama"), torch.bfloat16).run()
    assert 1e-3 < result.relative_error < 5e-2


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_the_other_payloads_are_read_as_far_as_they_say(kind: str, folders: Callable[[str], str]) -> None:
    """The k most probable tokens, or the response's own; another head in the encoder is seen in both."""
    bed = Bed(folders("llama"))
    bed.encode = encoder(kind, bed.head)
    assert bed.run().relative_error < 1e-5
    bed.encode = encoder(kind, other_head(bed.head))
    assert "through engine, payload and head" in bed.refusal()


def encoder(kind: str, head: Head) -> Encode:
    def encode(hidden: Tensor, response_ids: Any) -> Payload:
        if kind == "topk":
            return encode_topk(hidden, head, response_ids, temperature=TEMPERATURE, k=5)
        return encode_sampled(hidden, head, response_ids, temperature=TEMPERATURE)

    return encode


def other_head(head: Head) -> Head:
    return replace(head, weight=head.weight.flip(0))


def spoil(bed: Bed, fault: str) -> None:
    """The silent mistakes, by name."""
    if fault == "states from before the final norm":
        bed.engine._body.norm = nn.Identity()
    elif fault == "another model's head":
        bed.head = other_head(bed.head)
    elif fault == "a transposed head":
        square = bed.head.weight[:16, :16].t()
        bed.head = replace(bed.head, weight=torch.cat([square, bed.head.weight[16:]]))
    elif fault == "a head without its scale":
        bed.head = replace(bed.head, scale=None)
    elif fault == "a head without its soft-cap":
        bed.head = replace(bed.head, soft_cap=None)
    elif fault == "a head without its bias":
        bed.head = replace(bed.head, bias=None)
    elif fault == "a cast to bfloat16 in the payload":
        bed.encode = lambda hidden, response_ids: encode_hidden(hidden, torch.bfloat16)
    elif fault == "a cast to bfloat16 in the engine":
        bed.engine._body.to(torch.bfloat16)
    elif fault == "padding in the vocabulary":
        bed.head = replace(bed.head, vocab_size=VOCABULARY)
    elif fault == "weights that are not the model's":
        bed.engine._body.layers[0].mlp.up_proj.weight.data.mul_(1.2)
    elif fault == "weights that are not numbers":
        bed.engine._body.layers[0].mlp.up_proj.weight.data.fill_(torch.nan)


@pytest.mark.parametrize(
    ("architecture", "fault", "cause"),
    [
        ("llama", "another model's head", "an output head that is missing"),
        ("llama", "a transposed head", "an output head that is missing"),
        ("granite", "a head without its scale", "a bias, logit scale or soft-cap that is not applied"),
        ("gemma2", "a head without its soft-cap", "a bias, logit scale or soft-cap that is not applied"),
        ("phi", "a head without its bias", "a bias, logit scale or soft-cap that is not applied"),
        ("llama", "padding in the vocabulary", "a vocabulary that is not the tokenizer's"),
        ("llama", "states from before the final norm", "hidden states from before the model's final norm"),
        ("llama", "a cast to bfloat16 in the payload", "a cast to a lower precision on the way"),
        ("llama", "a cast to bfloat16 in the engine", "a dtype that the engine does not keep"),
        ("llama", "weights that are not the model's", "weights that the engine reads in another way"),
        ("llama", "weights that are not numbers", "weights that the engine reads in another way"),
    ],
)
def test_a_silent_mistake_stops_the_run(
    architecture: str, fault: str, cause: str, folders: Callable[[str], str]
) -> None:
    """Every one of them gives plausible numbers, none gets past the comparison, and its cause is among the likely."""
    bed = Bed(folders(architecture))
    spoil(bed, fault)
    message = bed.refusal()
    assert bed.model in message
    assert cause in message


def test_in_bfloat16_a_head_is_held_to_more_than_the_engine(folders: Callable[[str], str]) -> None:
    """It is compared on the same hidden states: a scale that is 4 % wrong would drown in the engine's rounding."""
    bed = Bed(folders("granite"), torch.bfloat16)
    bed.run()
    bed.head = replace(bed.head, scale=1.04 * (bed.head.scale or 1.0))
    assert "by the head that was read from its files" in bed.refusal()


def test_a_vocabulary_of_another_size_is_named_with_both_sizes(folders: Callable[[str], str]) -> None:
    """No difference can be taken."""
    bed = Bed(folders("llama"))
    bed.head = replace(bed.head, vocab_size=VOCABULARY)
    assert f"have {VOCABULARY} ids, not {NUM_IDS}" in bed.refusal()


def test_a_difference_is_given_in_numbers(folders: Callable[[str], str]) -> None:
    """Relative to the spread, beside what the dtype allows, and in nats."""
    bed = Bed(folders("llama"))
    bed.head = other_head(bed.head)
    message = bed.refusal()
    assert "of their spread (expected at most 0.0001 in float32)" in message
    assert "nats at its largest" in message


class ForgetfulCache(HiddenStateEngine):
    """Reads a cache of blocks of 8, and computes what follows as if those tokens had been others."""

    def __init__(self, engine: HiddenStateEngine) -> None:
        self._engine = engine
        self._reused: set[str] = set()

    @property
    def block_tokens(self) -> int:
        return 8

    def add(self, request_id: str, token_ids: Any, *, num_known: int = 0) -> None:
        ids = list(token_ids)
        if num_known and len(ids) > 24:
            self._reused.add(request_id)
            ids[:8] = ids[:8][::-1]
        self._engine.add(request_id, ids, num_known=num_known)

    def step(self) -> list[HiddenRows]:
        return [
            HiddenRows(rows.request_id, rows.hidden[8:], 8) if rows.request_id in self._reused else rows
            for rows in self._engine.step()
        ]

    def has_unfinished(self) -> bool:
        return self._engine.has_unfinished()

    def abort(self, request_ids: Any) -> None:
        self._engine.abort(request_ids)


def test_a_cache_that_returns_something_else_is_seen_with_and_without_a_reference(
    folders: Callable[[str], str],
) -> None:
    """What a model that is compared with itself alone can show."""
    bed = Bed(folders("llama"))
    assert bed.run(with_reference=False).compared_with == "itself"
    bed.engine = ForgetfulCache(bed.engine)
    for with_reference in (True, False):
        message = bed.refusal(with_reference=with_reference)
        assert "prefix cache" in message and "collected over a session" in message


def test_a_wrong_head_is_not_seen_without_a_reference(folders: Callable[[str], str]) -> None:
    """The limit of self-consistency, which the module says: both passes have the head in common."""
    bed = Bed(folders("llama"))
    bed.head = other_head(bed.head)
    assert bed.run(with_reference=False).relative_error < 1e-5
