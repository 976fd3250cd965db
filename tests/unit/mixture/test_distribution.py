"""What the sampler draws is the mixture, token by token, by 20,000 responses against the enumeration.

Two statistics, both with a size of one in a thousand: chi-square over the responses, and the score of the mixture in
alpha, which is what a wrong share of the teacher moves most. That they would find a wrong sampler is computed here, and
shown on wrong samplers.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scripted.lock_step import lock_step
from scripted.mixture_laws import EOS, Law, Response, chi_square_p_value, sharp
from scripted.tiny_engines import Sampling, TinyStudent, TinyTeacher, at_once

from minillm_ray.mixture import arithmetic
from minillm_ray.mixture.exchange import Proposal, Verdict, Verify
from minillm_ray.mixture.risk import RiskyCoins
from minillm_ray.mixture.sampler import MixedResponse, MixtureSettings, sample

PROMPT = [1, 2, 3]
LIMIT = 3
NUM_DRAWS = 20_000
SMALLEST_P_VALUE = 1e-3
LARGEST_DEVIATION = 3.3

SCHEMES = ("propose_verify", "handoff")
ALPHAS = (0.0, 0.2, 0.5, 1.0)
PLAIN = Sampling()
TRUNCATED = Sampling(temperature=1.4, top_k=4, top_p=0.9)
CASES = [
    *((scheme, alpha, PLAIN) for scheme in SCHEMES for alpha in ALPHAS),
    *((scheme, 0.5, TRUNCATED) for scheme in SCHEMES),
]
"""A response is ended by the end token inside it or by the limit; its three tokens take up to three proposals."""

STUDENT, TEACHER = sharp(seed=3), sharp(seed=4)


@cache
def law(alpha: float, sampling: Sampling = PLAIN) -> Law:
    return Law(STUDENT, TEACHER, PROMPT, alpha=alpha, limit=LIMIT, sampling=sampling)


def draw(scheme: str, alpha: float, sampling: Sampling, verify: Verify | None = None) -> list[MixedResponse]:
    student, teacher = TinyStudent(STUDENT, sampling=sampling), TinyTeacher(TEACHER, sampling=sampling)
    settings = MixtureSettings(alpha=alpha, scheme=scheme, proposal_tokens=2, stop_token_ids=(EOS,))
    risk = RiskyCoins()
    return [
        at_once(
            sample(
                PROMPT,
                settings,
                propose=student.propose,
                verify=verify or teacher.verify,
                seed=seed,
                max_response_tokens=LIMIT,
                risk=risk,
            )
        )
        for seed in range(NUM_DRAWS)
    ]


drawn = cache(draw)


def tokens(responses: list[MixedResponse]) -> list[Response]:
    return [tuple(response.response_ids.tolist()) for response in responses]


def p_value(responses: list[Response], expected: Law, depth: int) -> float:
    return chi_square_p_value(Counter(response[:depth] for response in responses), expected.responses(depth))


@pytest.mark.parametrize("depth", [1, LIMIT])
@pytest.mark.parametrize(("scheme", "alpha", "sampling"), CASES)
def test_responses_have_the_mixtures_distribution(scheme: str, alpha: float, sampling: Sampling, depth: int) -> None:
    """Of the first token, and of the whole response."""
    assert p_value(tokens(drawn(scheme, alpha, sampling)), law(alpha, sampling), depth) > SMALLEST_P_VALUE


@pytest.mark.parametrize(("scheme", "alpha", "sampling"), CASES)
def test_the_teachers_share_is_alpha(scheme: str, alpha: float, sampling: Sampling) -> None:
    """The score statistic; a share that is off by a tenth would be five deviations further out than what passes."""
    off = law(alpha - 0.1 if alpha >= 0.5 else alpha + 0.1, sampling)
    assert abs(law(alpha, sampling).power(off, NUM_DRAWS)) > LARGEST_DEVIATION + 5
    responses = tokens(drawn(scheme, alpha, sampling))
    assert abs(law(alpha, sampling).score_deviation(responses)) < LARGEST_DEVIATION


@pytest.mark.parametrize(("scheme", "alpha", "sampling"), CASES)
def test_recorded_logprobs_are_the_enumerated_ones(scheme: str, alpha: float, sampling: Sampling) -> None:
    """log m of the truncated distributions, and log q of the whole vocabulary, which is finite where q was cut."""
    num_cut = 0
    for response in drawn(scheme, alpha, sampling):
        ids = response.response_ids.tolist()
        for t, token in enumerate(ids):
            state = law(alpha, sampling).state(ids[:t])
            assert abs(response.behavior_logprob[t] - np.log(law(alpha, sampling).mixture(ids[:t])[token])) < 1e-4
            assert abs(response.sampler_logprob[t] - np.log(state.whole[token])) < 1e-4
            num_cut += state.q[token] == 0
    assert (num_cut > 0) == (sampling == TRUNCATED)


@pytest.mark.parametrize(("alpha", "sampling"), [(alpha, s) for scheme, alpha, s in CASES if scheme == SCHEMES[0]])
def test_a_token_is_corrected_with_probability_alpha_times_total_variation(alpha: float, sampling: Sampling) -> None:
    """Corrections less alpha TV(p, q) of the states visited is zero on average, within three standard errors."""
    excess = []
    for response in drawn("propose_verify", alpha, sampling):
        ids = response.response_ids.tolist()
        states = [law(alpha, sampling).state(ids[:t]) for t in range(len(ids))]
        distance = sum(np.abs(state.p - state.q).sum() / 2 for state in states)
        excess.append(response.counts.num_corrections - alpha * distance)
    assert abs(np.mean(excess)) <= 3 * np.std(excess) / np.sqrt(NUM_DRAWS)


def test_the_definition_passes_too() -> None:
    """Both models in lock step, which share nothing with the sampler."""
    responses = lock_step(
        STUDENT,
        TEACHER,
        torch.tensor([PROMPT] * NUM_DRAWS),
        alpha=0.5,
        max_response_tokens=LIMIT,
        stop_token_ids=[EOS],
        generator=torch.Generator().manual_seed(0),
        temperature=TRUNCATED.temperature,
        top_k=TRUNCATED.top_k,
        top_p=TRUNCATED.top_p,
    )
    lengths = responses.lengths.tolist()
    ids = [tuple(row[:n]) for row, n in zip(responses.token_ids.tolist(), lengths, strict=True)]
    expected = law(0.5, TRUNCATED)
    assert p_value(ids, expected, 1) > SMALLEST_P_VALUE
    assert p_value(ids, expected, LIMIT) > SMALLEST_P_VALUE
    assert abs(expected.score_deviation(ids)) < LARGEST_DEVIATION
    for response, logprobs in list(zip(ids, responses.behavior_logprob, strict=True))[:200]:
        for t, token in enumerate(response):
            assert abs(float(logprobs[t]) - np.log(expected.mixture(response[:t])[token])) < 1e-4


def deaf(verify: Verify) -> Verify:
    """A teacher that lets everything stand."""

    async def accept(proposal: Proposal) -> Verdict:
        return await verify(replace(proposal, log_threshold=np.full_like(proposal.log_threshold, -np.inf)))

    return accept


def test_a_sampler_that_ignores_the_teacher_fails() -> None:
    """By what the score was computed to say beforehand, and by chi-square."""
    responses = tokens(draw("propose_verify", 0.2, PLAIN, deaf(TinyTeacher(TEACHER).verify)))
    expected = law(0.2).power(law(0.0), NUM_DRAWS)
    assert expected < -20
    assert abs(law(0.2).score_deviation(responses) / expected - 1) < 0.2
    assert p_value(responses, law(0.2), 1) < SMALLEST_P_VALUE


def accepted_by(accept: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The first token's distribution where the student's token stands for the teacher's with that probability."""
    state = law(0.2).state(())
    stands = state.q * accept(state.p, state.q)
    residual = np.maximum(state.p - state.q, 0)
    return 0.8 * state.q + 0.2 * (stands + (1 - stands.sum()) * residual / residual.sum())


def redrawn_from_p() -> np.ndarray:
    state = law(0.2).state(())
    return 0.8 * state.q + 0.2 * (np.minimum(state.p, state.q) + np.abs(state.p - state.q).sum() / 2 * state.p)


@pytest.mark.parametrize(
    ("name", "wrong", "first_token"),
    [
        (
            "log_threshold",
            lambda drawn, teacher, accept: np.where(teacher, np.log(accept), -np.inf).astype(np.float32),
            accepted_by(lambda p, q: p),
        ),
        (
            "draw_residual",
            lambda teacher_row, student_row, uniform: arithmetic.draw(teacher_row, uniform),
            redrawn_from_p(),
        ),
    ],
    ids=["accepts with probability p instead of p / q", "redraws from p instead of the residual"],
)
def test_a_sampler_with_a_wrong_rule_fails(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable, first_token: np.ndarray
) -> None:
    """By chi-square, at the smallest of the shares, as its power said; the wrong law itself is what was drawn."""
    m = law(0.2).mixture(())
    noncentrality = NUM_DRAWS * ((first_token - m) ** 2 / m).sum()
    assert noncentrality > 60, "at five degrees of freedom, 20.5 is where one in a thousand begins"
    monkeypatch.setattr(arithmetic, name, wrong)
    responses = tokens(draw("propose_verify", 0.2, PLAIN))
    assert p_value(responses, law(0.2), 1) < SMALLEST_P_VALUE
    as_computed = {(token,): probability for token, probability in enumerate(first_token)}
    assert chi_square_p_value(Counter(response[:1] for response in responses), as_computed) > SMALLEST_P_VALUE
