"""Proposals that are ready together go to a teacher in one call, and each gets its own verdict."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.rollout.verdicts import Verdicts


class Teachers:
    """calls: teacher and sessions of each; a verdict names the first token of its proposal.

    gate: an answer waits for it. The teacher called "bad" raises.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def extend(self, teacher: str, proposals: list[tuple[str, Proposal]]) -> list[Verdict]:
        self.calls.append((teacher, [session for session, _ in proposals]))
        await self.gate.wait()
        if teacher == "bad":
            raise ArithmeticError("not a number")
        return [Verdict(proposal.token_ids[:1].astype(np.float32), None) for _, proposal in proposals]


def play(scenario: Callable[[Teachers, Verdicts], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        teachers = Teachers()
        await asyncio.wait_for(scenario(teachers, Verdicts(teachers.extend)), timeout=30)

    asyncio.run(body())


async def ask(verdicts: Verdicts, teacher: str, number: int) -> int:
    proposal = Proposal(np.array([number, 0], np.int32), 1, 0, np.zeros(1, np.float32))
    verdict = await verdicts.ask(teacher, f"s{number}", proposal)
    return int(verdict.teacher_logprob[0])


def test_what_one_turn_of_the_event_loop_asks_is_one_call_a_teacher() -> None:
    """However many ask; what is asked later is another call, which does not wait for the first."""

    async def scenario(teachers: Teachers, verdicts: Verdicts) -> None:
        teachers.gate.clear()
        asked = [asyncio.ensure_future(ask(verdicts, "ab"[k % 2], k)) for k in range(6)]
        await asyncio.sleep(0.01)
        later = asyncio.ensure_future(ask(verdicts, "b", 7))
        await asyncio.sleep(0.01)
        assert teachers.calls == [("a", ["s0", "s2", "s4"]), ("b", ["s1", "s3", "s5"]), ("b", ["s7"])]
        teachers.gate.set()
        assert await asyncio.gather(*asked, later) == [0, 1, 2, 3, 4, 5, 7]

    play(scenario)


def test_a_call_that_fails_fails_for_all_that_are_in_it() -> None:
    """And for nobody else: the verdicts of another teacher come."""

    async def scenario(teachers: Teachers, verdicts: Verdicts) -> None:
        asked = [ask(verdicts, teacher, k) for k, teacher in enumerate(["bad", "good", "bad"])]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert outcomes[1] == 1
        assert all(isinstance(outcomes[k], ArithmeticError) for k in (0, 2))

    play(scenario)


def test_who_no_longer_waits_takes_no_verdict_from_the_others() -> None:
    """A response that is abandoned leaves the call under way, however that ends."""

    async def scenario(teachers: Teachers, verdicts: Verdicts) -> None:
        for teacher in ("good", "bad"):
            teachers.gate.clear()
            doomed, other = (asyncio.ensure_future(ask(verdicts, teacher, k)) for k in (1, 2))
            await asyncio.sleep(0.01)
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            teachers.gate.set()
            (outcome,) = await asyncio.gather(other, return_exceptions=True)
            assert outcome == 2 or isinstance(outcome, ArithmeticError)

    play(scenario)
