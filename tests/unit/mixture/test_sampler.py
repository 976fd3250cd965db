"""A mixed response from its first proposal to its end: what is asked of whom, what ends it, what new weights change."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from scripted.mixture_laws import EOS, Law, chi_square_p_value, sharp
from scripted.tiny_engines import TinyStudent, TinyTeacher, at_once

from minillm_ray.engines.generation import GeneratedSequence
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.mixture.risk import RiskyCoins
from minillm_ray.mixture.sampler import MixedResponse, MixtureSettings, Propose, sample

PROMPT = [1, 2, 3]
STUDENT, OTHER_STUDENT, TEACHER = sharp(seed=3), sharp(seed=8), sharp(seed=4)


def settings(**changes) -> MixtureSettings:
    return MixtureSettings(
        **({"alpha": 0.5, "scheme": "propose_verify", "proposal_tokens": 4, "stop_token_ids": (EOS,)} | changes)
    )


class Unlearned(RiskyCoins):
    """Finds no coin risky, ever."""

    def observe(self, *, num_coins: int, num_fallen: int) -> None:
        pass


def alarmed() -> RiskyCoins:
    """Finds every coin of the teacher risky."""
    risk = RiskyCoins()
    risk.observe(num_coins=10_000, num_fallen=10_000)
    return risk


def respond(
    propose: Propose,
    verify,
    *,
    seed: int = 0,
    limit: int = 12,
    mixture: MixtureSettings | None = None,
    risk: RiskyCoins | None = None,
) -> MixedResponse:
    """risk: at first none by default, since nothing was learned."""
    return at_once(
        sample(
            PROMPT,
            mixture or settings(),
            propose=propose,
            verify=verify,
            seed=seed,
            max_response_tokens=limit,
            risk=risk or RiskyCoins(),
        )
    )


@pytest.fixture
def student() -> TinyStudent:
    return TinyStudent(STUDENT)


@pytest.fixture
def teacher() -> TinyTeacher:
    return TinyTeacher(TEACHER)


def test_proposals_end_on_the_teachers_blocks_and_cover_the_response(
    student: TinyStudent, teacher: TinyTeacher
) -> None:
    """Each is the whole sequence so far; fed tokens fill blocks, but at an end token or the limit; the coinless too."""
    for seed in range(50):
        teacher.proposals.clear()
        response = respond(student.propose, teacher.verify, seed=seed, mixture=settings(alpha=0.2), risk=Unlearned())
        starts = [proposal.start for proposal in teacher.proposals]
        assert starts[0] == 0 and sorted(set(starts)) == starts
        for proposal in teacher.proposals:
            assert proposal.token_ids.dtype == np.int32 and proposal.log_threshold.dtype == np.float32
            assert proposal.token_ids[: 3 + proposal.start].tolist() == [
                *PROMPT,
                *response.response_ids[: proposal.start],
            ]
            num_proposed = len(proposal.token_ids) - 3 - proposal.start
            assert len(proposal.log_threshold) == num_proposed >= 1
            ends_early = proposal.token_ids[-1] == EOS or len(proposal.token_ids) == 3 + 12
            assert ends_early or num_proposed == 4
        assert response.counts.num_teacher_requests == response.counts.num_student_requests == len(starts)


def test_proposals_end_at_risky_coins(student: TinyStudent, teacher: TinyTeacher) -> None:
    """Where all coins of the teacher are, each proposal holds one at most, as its last token."""
    num_coins = 0
    for seed in range(50):
        teacher.proposals.clear()
        respond(student.propose, teacher.verify, seed=seed, mixture=settings(proposal_tokens=100), risk=alarmed())
        for proposal in teacher.proposals:
            assert np.isneginf(proposal.log_threshold[:-1]).all()
            num_coins += int(np.isfinite(proposal.log_threshold[-1]))
    assert num_coins > 100


def test_where_proposals_end_changes_nothing_that_is_drawn(student: TinyStudent, teacher: TinyTeacher) -> None:
    """Every slot has numbers of its own, which no earlier proposal used up."""
    for seed in range(50):
        by_length = [
            respond(
                student.propose,
                teacher.verify,
                seed=seed,
                mixture=settings(proposal_tokens=proposal_tokens),
                risk=risk(),
            )
            for proposal_tokens in (1, 3, 4, 100)
            for risk in (Unlearned, RiskyCoins, alarmed)
        ]
        assert len({tuple(response.response_ids.tolist()) for response in by_length}) == 1
        assert len({response.behavior_logprob.tobytes() for response in by_length}) == 1


def test_with_alpha_0_it_is_the_students_own_response(student: TinyStudent, teacher: TinyTeacher) -> None:
    """The same seed, one request to the student, no teacher."""
    for seed in range(50):
        mixed = respond(student.propose, teacher.verify, seed=seed, mixture=settings(alpha=0.0))
        own = at_once(student.propose(PROMPT, max_new_tokens=12, seed=seed, first_slot=0, keep_rows=()))
        assert mixed.response_ids.tolist() == own.token_ids.tolist()
        np.testing.assert_array_equal(mixed.sampler_logprob, own.logprob)


def test_a_handoff_asks_once_a_token_of_the_teacher(student: TinyStudent, teacher: TinyTeacher) -> None:
    """Each proposal but the last ends on a token that no threshold lets stand; all coins are corrections."""
    for seed in range(50):
        teacher.proposals.clear()
        response = respond(student.propose, teacher.verify, seed=seed, mixture=settings(scheme="handoff"))
        for proposal in teacher.proposals:
            assert np.isneginf(proposal.log_threshold[:-1]).all()
        assert response.counts.num_corrections == response.counts.num_coins


@pytest.mark.parametrize("scheme", ["propose_verify", "handoff"])
def test_an_end_token_of_either_model_ends_the_response_and_the_limit_truncates_it(
    student: TinyStudent, teacher: TinyTeacher, scheme: str
) -> None:
    """The end token stands last and nowhere else; whose it was, both occur; one in the last slot is no truncation."""
    whose: Counter[str] = Counter()
    for seed in range(300):
        response = respond(student.propose, teacher.verify, seed=seed, limit=3, mixture=settings(scheme=scheme))
        ids = response.response_ids.tolist()
        assert EOS not in ids[:-1]
        assert response.truncated == (ids[-1] != EOS)
        assert len(ids) == 3 or ids[-1] == EOS
        if ids[-1] == EOS:
            by_student = (
                len(teacher.proposals[-1].token_ids) == 3 + len(ids) and teacher.proposals[-1].token_ids[-1] == EOS
            )
            whose["in the last slot" if len(ids) == 3 else "student" if by_student else "teacher"] += 1
        else:
            whose["nobody"] += 1
    assert min(whose[name] for name in ("student", "teacher", "nobody", "in the last slot")) > 5


def test_at_alpha_one_the_teacher_draws_every_token(student: TinyStudent, teacher: TinyTeacher) -> None:
    """log m is log p of every token, and log q is recorded beside it."""
    law = Law(STUDENT, TEACHER, PROMPT, alpha=1.0, limit=6)
    for seed in range(20):
        response = respond(student.propose, teacher.verify, seed=seed, limit=6, mixture=settings(alpha=1.0))
        ids = response.response_ids.tolist()
        for t, token in enumerate(ids):
            assert response.behavior_logprob[t] == pytest.approx(np.log(law.state(ids[:t]).p[token]), abs=1e-4)
            assert response.sampler_logprob[t] == pytest.approx(np.log(law.state(ids[:t]).q[token]), abs=1e-4)
        assert response.counts.num_coins == len(ids)


def long_response(teacher: TinyTeacher, propose: Propose | None = None) -> MixedResponse:
    """40 tokens: no token is an end token."""
    propose = propose or TinyStudent(STUDENT, stop_token_ids=()).propose
    mixture = settings(stop_token_ids=())
    return respond(propose, teacher.verify, seed=4, limit=40, mixture=mixture, risk=Unlearned())


def test_counts_add_up(teacher: TinyTeacher) -> None:
    """What the student drew is what was proposed; corrections are among the coins, at most one a proposal."""
    counts = long_response(teacher).counts
    assert counts.num_tokens == 40
    assert counts.num_student_tokens == sum(len(proposal.log_threshold) for proposal in teacher.proposals)
    assert 0 < counts.num_corrections < counts.num_coins < counts.num_tokens < counts.num_student_tokens
    assert counts.num_corrections <= counts.num_student_requests == len(teacher.proposals)


def test_rows_are_asked_for_where_the_teacher_may_draw_and_nowhere_else(teacher: TinyTeacher) -> None:
    """A row is the size of the vocabulary: only slots whose threshold is finite need one."""
    student = TinyStudent(STUDENT, stop_token_ids=())
    asked: list[list[int]] = []

    async def propose(
        token_ids: Sequence[int], *, max_new_tokens: int, seed: int, first_slot: int, keep_rows: Collection[int]
    ) -> GeneratedSequence:
        asked.append(list(keep_rows))
        return await student.propose(
            token_ids, max_new_tokens=max_new_tokens, seed=seed, first_slot=first_slot, keep_rows=keep_rows
        )

    long_response(teacher, propose)
    assert any(asked)
    for offsets, proposal in zip(asked, teacher.proposals, strict=True):
        assert offsets == np.flatnonzero(np.isfinite(proposal.log_threshold)).tolist()


@pytest.mark.parametrize("scheme", ["propose_verify", "handoff"])
def test_weights_that_change_between_two_proposals_leave_the_earlier_tokens_as_they_were(
    teacher: TinyTeacher, scheme: str
) -> None:
    """Log-probabilities and versions are those of the model that drew, and the token is from the mixture with it."""
    students = [TinyStudent(model) for model in (STUDENT, OTHER_STUDENT)]
    students[1].version = 1
    laws = [Law(model, TEACHER, PROMPT, alpha=0.5, limit=3) for model in (STUDENT, OTHER_STUDENT)]
    next_tokens: dict[tuple, Counter[int]] = defaultdict(Counter)
    for seed in range(4000):

        async def propose(
            token_ids: Sequence[int], *, max_new_tokens: int, seed: int, first_slot: int, keep_rows: Collection[int]
        ) -> GeneratedSequence:
            model = students[len(token_ids) > len(PROMPT)]  # the first proposal is the old weights', all later the new
            return await model.propose(
                token_ids, max_new_tokens=max_new_tokens, seed=seed, first_slot=first_slot, keep_rows=keep_rows
            )

        mixture = settings(scheme=scheme, proposal_tokens=2)
        response = respond(propose, teacher.verify, seed=seed, limit=3, mixture=mixture)
        ids, versions = response.response_ids.tolist(), response.weight_version.tolist()
        assert versions[0] == 0 and sorted(versions) == versions
        for t, (token, version) in enumerate(zip(ids, versions, strict=True)):
            law = laws[version]
            assert abs(response.sampler_logprob[t] - np.log(law.state(ids[:t]).q[token])) < 1e-4
            assert abs(response.behavior_logprob[t] - np.log(law.mixture(ids[:t])[token])) < 1e-4
            next_tokens[version, *ids[:t]][token] += 1
    seen = {state: drawn for state, drawn in next_tokens.items() if drawn.total() > 200}
    assert {(0,), (1,)} & {state[:1] for state in seen} == {(0,), (1,)}
    for (version, *start), drawn in seen.items():
        expected = dict(enumerate(laws[version].mixture(start)))
        assert chi_square_p_value(drawn, expected) > 1e-3 / len(seen)


def test_a_teacher_that_fails_fails_the_response(student: TinyStudent) -> None:
    """The error comes through as it is; nothing is made up in its place."""

    async def verify(proposal: Proposal) -> Verdict:
        raise ConnectionError("the teacher is gone")

    with pytest.raises(ConnectionError, match="the teacher is gone"):
        respond(student.propose, verify)
