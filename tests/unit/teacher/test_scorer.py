"""A verdict says how far a proposal stands, and a finished response that was verified needs no second pass."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from scripted.hidden_states import HIDDEN_SIZE, ScriptedHiddenStateEngine, expected_rows

from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.engines.heads import head_logits
from minillm_ray.engines.hidden_payload import decode_hidden, encode_hidden
from minillm_ray.engines.loop import EngineLoop
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.objective import Head
from minillm_ray.teacher import judge as judge_module
from minillm_ray.teacher.judge import Sampling
from minillm_ray.teacher.scorer import ScoreReport, TeacherScorer

Answer = TypeVar("Answer")

VOCABULARY = 11
HEAD = Head(torch.randn(VOCABULARY + 2, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)), vocab_size=VOCABULARY)
PROMPT = [7, 8, 9]
INFINITY = float("inf")


class Bed:
    """A scorer over a scripted engine; `run` gives it an event loop."""

    def __init__(
        self,
        sampling: Sampling | None = None,
        dtype: torch.dtype = torch.float32,
        max_sessions: int = 9,
        head: Head = HEAD,
    ):
        self.engine = ScriptedHiddenStateEngine()
        self.scorer = TeacherScorer(
            EngineLoop(lambda: self.engine, name="teacher"),
            head,
            encode=lambda hidden, response_ids: encode_hidden(hidden, dtype),
            dtype=dtype,
            sampling=sampling or Sampling(),
            max_sessions=max_sessions,
        )

    def extend(
        self, session: str, response: list[int], start: int = 0, thresholds: list[float] | None = None
    ) -> Verdict:
        thresholds = [-INFINITY] * (len(response) - start) if thresholds is None else thresholds
        return run(lambda: self.scorer.extend(session, proposal(response, start, thresholds)))

    def score(self, response: list[int], session: str | None = None) -> tuple[ScoreReport, HiddenPayload]:
        return run(lambda: self.scorer.score(trajectory(PROMPT, response), session))

    @property
    def num_computed(self) -> int:
        return self.scorer.report().engine_tokens


def run(make: Callable[[], Awaitable[Answer]]) -> Answer:
    async def body() -> Answer:
        return await make()

    return asyncio.run(body())


def proposal(response: list[int], start: int, thresholds: list[float]) -> Proposal:
    return Proposal(
        np.array([*PROMPT, *response], dtype=np.int32), len(PROMPT), start, np.array(thresholds, dtype=np.float32)
    )


def trajectory(prompt: list[int], response: list[int]) -> Trajectory:
    count = len(response)
    return Trajectory(
        prompt_index=0,
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        sampler_logprob=np.zeros(count, dtype=np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(count, dtype=np.int32),
        truncated=False,
    )


def expected_hidden(response: list[int]) -> torch.Tensor:
    """[n, d] where each response token is predicted."""
    return expected_rows([*PROMPT, *response[:-1]])[len(PROMPT) - 1 :]


def expected_logprobs(response: list[int], sampling: Sampling | None = None) -> torch.Tensor:
    """[n, V]."""
    sampling = sampling or Sampling()
    logits = head_logits(expected_hidden(response), HEAD)
    return log_probabilities(logits, sampling.temperature, sampling.top_k, sampling.top_p)


def of_tokens(logprobs: torch.Tensor, response: list[int]) -> np.ndarray:
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def test_a_proposal_without_teacher_coins_stands_whole() -> None:
    """And comes back with log p of each token, over the tokenizer's vocabulary alone."""
    response = [1, 2, 3, 4, 5]
    verdict = Bed().extend("s", response)
    assert verdict.row is None
    np.testing.assert_allclose(verdict.teacher_logprob, of_tokens(expected_logprobs(response), response), atol=1e-6)
    assert expected_logprobs(response).shape == (5, VOCABULARY)


@pytest.mark.parametrize("falls", range(4))
def test_the_first_token_below_its_threshold_falls_with_the_teachers_row(falls: int) -> None:
    """Log p of the tokens before it, and the whole row for the residual draw; a tie stands."""
    response = [1, 2, 3, 4]
    logprobs = expected_logprobs(response)
    at_tokens = of_tokens(logprobs, response)
    thresholds = [float(value) for value in at_tokens]
    thresholds[falls] = float(np.nextafter(np.float32(at_tokens[falls]), np.float32(np.inf)))
    verdict = Bed().extend("s", response, thresholds=thresholds)
    np.testing.assert_allclose(verdict.teacher_logprob, at_tokens[:falls], atol=1e-6)
    np.testing.assert_allclose(verdict.row, logprobs[falls], atol=1e-6)


def test_a_token_that_the_teacher_draws_itself_always_falls() -> None:
    """Threshold plus infinity: the row is what it draws from."""
    verdict = Bed().extend("s", [1, 2, 3], thresholds=[-INFINITY, INFINITY, -INFINITY])
    assert len(verdict.teacher_logprob) == 1
    np.testing.assert_allclose(verdict.row, expected_logprobs([1, 2, 3])[1], atol=1e-6)


@pytest.mark.parametrize("threshold", [-INFINITY, -1.0])
def test_a_teacher_that_yields_no_numbers_gives_no_verdict(threshold: float) -> None:
    """NaN compares with nothing: no token stands or falls by it."""
    bed = Bed(head=Head(torch.full_like(HEAD.weight, math.nan), vocab_size=VOCABULARY))
    with pytest.raises(FloatingPointError, match="not numbers"):
        bed.extend("s", [1, 2], thresholds=[-INFINITY, threshold])


def test_a_students_token_stands_also_where_the_teacher_never_draws_it() -> None:
    """Top-k cut it: log p is minus infinity, as its threshold is."""
    sampling = Sampling(temperature=0.7, top_k=2, top_p=0.9)
    logprobs = expected_logprobs([1], sampling)[0]
    cut = int(logprobs.argmin())
    verdict = Bed(sampling).extend("s", [cut])
    assert verdict.row is None
    assert verdict.teacher_logprob.tolist() == [-INFINITY]


def test_log_p_is_at_the_sampling_temperature_and_truncated() -> None:
    """The distribution that is mixed, not the one before temperature, top-k and top-p."""
    sampling = Sampling(temperature=0.5, top_k=5, top_p=0.95)
    verdict = Bed(sampling).extend("s", [1, 2], thresholds=[INFINITY, INFINITY])
    np.testing.assert_allclose(verdict.row, expected_logprobs([1, 2], sampling)[0], atol=1e-6)
    assert np.isinf(verdict.row).sum() >= VOCABULARY - 5


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time: the same verdict, where all stand and where a late one falls."""
    response = [1, 2, 3, 4, 5, 6]
    falling = [-INFINITY] * 4 + [INFINITY, -INFINITY]
    whole = [Bed().extend("s", response, thresholds=thresholds) for thresholds in ([-INFINITY] * 6, falling)]
    monkeypatch.setattr(judge_module, "_CHUNK_BYTES", 1)
    single = [Bed().extend("s", response, thresholds=thresholds) for thresholds in ([-INFINITY] * 6, falling)]
    for one, other in zip(whole, single, strict=True):
        np.testing.assert_allclose(one.teacher_logprob, other.teacher_logprob, atol=1e-6)
        assert (one.row is None) == (other.row is None)


def test_a_finished_response_that_was_verified_needs_no_second_pass() -> None:
    """Corrections move back inside a block; every row is collected on the way, and the payload is made of them."""
    bed = Bed()
    bed.extend("s", [1, 2, 3, 4, 5], thresholds=[-INFINITY] * 2 + [INFINITY] + [-INFINITY] * 2)
    bed.extend("s", [1, 2, 9, 4, 5, 6], start=3)
    bed.extend("s", [1, 2, 9, 4, 5, 6, 7, 8], start=6)
    before = len(bed.engine.requests)
    report, payload = bed.score([1, 2, 9, 4, 5, 6, 7, 8], "s")
    assert len(bed.engine.requests) == before == 3
    assert torch.equal(decode_hidden(payload), expected_hidden([1, 2, 9, 4, 5, 6, 7, 8]))
    assert report == ScoreReport(8, payload.data.nbytes, bed.num_computed, 3)


def test_of_a_proposal_only_what_is_new_is_computed_from_the_corrected_token_on() -> None:
    """Wherever it ends, and wherever a token fell."""
    bed = Bed()
    bed.extend("s", [1, 2, 3, 4, 5, 6])  # feeds 8 tokens
    bed.extend("s", [1, 2, 3, 4, 5, 6, 1, 2, 3, 4], start=6)  # feeds 12
    assert bed.num_computed == 12
    bed.extend("s", [1, 2, 3, 4, 5, 6, 1, 9, 3, 4], start=8)  # the token of slot 7 was corrected: 9 and 3 are fed
    assert bed.num_computed == 12 + 2


def test_rows_that_another_session_computed_are_not_read_from_the_cache() -> None:
    """Two responses begin with the same tokens: the engine has their keys and values, and no hidden states."""
    bed = Bed()
    bed.extend("a", [1, 2, 3, 4, 5, 6, 7])
    verdict = bed.extend("b", [1, 2, 3, 4, 5, 6, 0])
    assert [num_known for _, num_known in bed.engine.requests] == [len(PROMPT) - 1] * 2
    np.testing.assert_allclose(
        verdict.teacher_logprob, of_tokens(expected_logprobs([1, 2, 3, 4, 5, 6, 0]), [1, 2, 3, 4, 5, 6, 0]), atol=1e-6
    )


def test_a_session_that_began_on_a_lost_replica_goes_on_here() -> None:
    """A proposal holds the whole sequence: the first slots are computed as well, and the verdict is on the last."""
    bed = Bed()
    response = [1, 2, 3, 4, 5, 6]
    verdict = bed.extend("s", response, start=4)
    np.testing.assert_allclose(verdict.teacher_logprob, of_tokens(expected_logprobs(response), response)[4:], atol=1e-6)
    _, payload = bed.score(response, "s")
    assert torch.equal(decode_hidden(payload), expected_hidden(response))


def test_a_session_of_other_tokens_is_not_believed() -> None:
    """Rows are taken as far as the tokens agree; the rest is computed."""
    bed = Bed()
    bed.extend("s", [1, 2, 3, 4, 5])
    _, payload = bed.score([1, 2, 6, 4, 5], "s")
    assert torch.equal(decode_hidden(payload), expected_hidden([1, 2, 6, 4, 5]))
    assert len(bed.engine.requests) == 2


def test_a_tail_that_was_never_verified_is_computed_at_the_end() -> None:
    """After the last teacher coin the student may go on alone: only the tail is computed."""
    bed = Bed()
    bed.extend("s", [1, 2, 3, 4, 5, 6])
    before = bed.num_computed
    _, payload = bed.score([1, 2, 3, 4, 5, 6, 7, 8], "s")
    assert torch.equal(decode_hidden(payload), expected_hidden([1, 2, 3, 4, 5, 6, 7, 8]))
    assert bed.num_computed == before + 2


def test_without_a_session_a_score_reads_no_cache() -> None:
    """Whatever was scored before: the same requests, hence the same numbers."""
    bed = Bed()
    first = bed.score([1, 2, 3, 4, 5, 6])
    second = bed.score([1, 2, 3, 4, 5, 6])
    assert bed.engine.requests == [([*PROMPT, 1, 2, 3, 4, 5], 0)] * 2
    np.testing.assert_array_equal(first[1].data, second[1].data)


def test_text_has_a_prompt_of_one_token() -> None:
    """Plain text for the language-modelling term: every token but the first is predicted."""
    bed = Bed()
    report, payload = run(lambda: bed.scorer.score(trajectory([7], [8, 9, 1])))
    assert torch.equal(decode_hidden(payload), expected_rows([7, 8, 9]))
    assert report.response_tokens == 3


@pytest.mark.parametrize(("dtype", "held"), [(torch.float32, np.float32), (torch.bfloat16, np.uint16)])
def test_a_payload_is_in_the_teachers_dtype(dtype: torch.dtype, held: type) -> None:
    """bfloat16 halves what travels."""
    report, payload = Bed(dtype=dtype).score([1, 2, 3])
    assert payload.data.dtype == held
    assert torch.equal(decode_hidden(payload), expected_hidden([1, 2, 3]).to(dtype))
    assert report.payload_bytes == 3 * HIDDEN_SIZE * dtype.itemsize


def test_sessions_end_when_they_are_scored_or_forgotten_and_the_oldest_beyond_the_bound() -> None:
    """Forgetting an unknown one is no error."""
    bed = Bed(max_sessions=2)
    for name in ("a", "b", "c"):
        bed.extend(name, [1, 2])
    assert bed.scorer.report().open_sessions == 2
    bed.score([1, 2], "b")
    bed.scorer.forget("c")
    bed.scorer.forget("a")
    assert bed.scorer.report().open_sessions == 0


def test_the_report_counts_every_token_that_the_engine_computed() -> None:
    """Of forgotten sessions too; scored tokens are those of responses."""
    bed = Bed()
    bed.extend("s", [1, 2, 3])  # feeds 5 tokens
    bed.scorer.forget("s")
    bed.score([4, 5])  # feeds 4
    report = bed.scorer.report()
    assert (report.engine_tokens, report.requests, report.scored_tokens) == (9, 2, 2)


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
def test_sessions_are_judged_side_by_side(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Eight proposals at once, each with its own rows; of every fourth all stand, the others fall at 0, 1, 2."""
    monkeypatch.setattr(judge_module, "_CHUNK_BYTES", chunk_bytes)
    bed = Bed()
    responses = [[k, k + 1, k + 2] for k in range(8)]

    def thresholds(k: int) -> list[float]:
        return [INFINITY if slot == k % 4 else -INFINITY for slot in range(3)]

    async def all_at_once() -> list[Verdict]:
        return await asyncio.gather(
            *(bed.scorer.extend(str(k), proposal(r, 0, thresholds(k))) for k, r in enumerate(responses))
        )

    for k, (verdict, response) in enumerate(zip(run(all_at_once), responses, strict=True)):
        stands = min(k % 4, 3)
        of_all = expected_logprobs(response)
        np.testing.assert_allclose(verdict.teacher_logprob, of_tokens(of_all, response)[:stands], atol=1e-6)
        if stands == 3:
            assert verdict.row is None
        else:
            np.testing.assert_allclose(verdict.row, of_all[stands], atol=1e-6)
