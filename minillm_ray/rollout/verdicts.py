"""Asking teachers for verdicts. What is ready in one turn of the event loop goes out in one call.

    engine's step ends --> the responses that finished a proposal in it ask, one after another --> one call a teacher

A call wakes several threads in each of the two processes, which want the cores that the engines work on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minillm_ray.mixture.exchange import Proposal, Verdict

Extend = Callable[[Any, list[tuple[str, Proposal]]], Awaitable[Sequence[Verdict]]]
"""One call: a teacher and proposals with the names of their sessions, to a verdict on each, in order."""


@dataclass(frozen=True)
class _Asked:
    session: str
    proposal: Proposal
    verdict: "asyncio.Future[Verdict]"


class Verdicts:
    """Of any number of teachers, by whatever names one: an actor handle."""

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._waiting: dict[Any, list[_Asked]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        """Under way. An event loop alone does not keep its tasks alive."""

    async def ask(self, teacher: Any, session: str, proposal: Proposal) -> Verdict:
        """Raises what the call raises, which may be about another proposal in it."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)  # after all that this turn has woken
        asked = _Asked(session, proposal, loop.create_future())
        self._waiting.setdefault(teacher, []).append(asked)
        return await asked.verdict

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for teacher, asked in waiting.items():
            call = asyncio.ensure_future(self._call(teacher, asked))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, teacher: Any, asked: Sequence[_Asked]) -> None:
        try:
            verdicts = await self._extend(teacher, [(each.session, each.proposal) for each in asked])
        except Exception as error:
            for each in asked:
                if not each.verdict.done():  # cancelled since
                    each.verdict.set_exception(error)
        else:
            for each, verdict in zip(asked, verdicts, strict=True):
                if not each.verdict.done():
                    each.verdict.set_result(verdict)
