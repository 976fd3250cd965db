"""What the teacher says of a response: verdicts while it is drawn, and then a payload for the learner.

A verdict needs the hidden states of the tokens that it judges, and so does the payload: what verification computed is
kept in a session, and a finished response that was verified to its end needs no second pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.data.trajectory import Payload, Trajectory
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine
from minillm_ray.engines.loop import Batched, EngineLoop, Together
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.objective import Head
from minillm_ray.teacher.judge import Judge, Sampling
from minillm_ray.teacher.sessions import Session, Sessions, TokenIds

Answer = TypeVar("Answer")
Encode = Callable[[Tensor, npt.NDArray[np.int32]], Payload]
"""Hidden states [n, d_t] and response ids [n] to a payload. Runs in the engine's thread."""


@dataclass(frozen=True)
class ScoreReport:
    """One scored response. engine_tokens, requests: what it cost the engine, the verification of it included."""

    response_tokens: int
    payload_bytes: int
    engine_tokens: int
    requests: int


@dataclass(frozen=True)
class TeacherReport:
    """Since the start. engine_tokens counts every token computed, also for responses that were never finished."""

    engine_tokens: int
    requests: int
    scored_tokens: int
    open_sessions: int


class TeacherScorer:
    """Same tokens in, same numbers out. One call at a time for each session; any number of sessions.

    dtype: of the model, in which hidden states are kept; max_sessions: beyond it the longest unused one is dropped.
    """

    def __init__(
        self,
        loop: EngineLoop[HiddenStateEngine, HiddenRows],
        head: Head,
        *,
        encode: Encode,
        dtype: torch.dtype,
        sampling: Sampling,
        max_sessions: int = 1024,
    ) -> None:
        self._loop = loop
        self._encode = encode
        self._dtype = dtype
        self._judge = Judge(head, sampling)
        self._sessions = Sessions(max_sessions)
        self._engine_tokens = 0
        self._requests = 0
        self._scored_tokens = 0

    async def extend(self, session: str, proposal: Proposal) -> Verdict:
        """Judge a proposal, and keep the hidden states that this took under the name `session`."""
        state = self._sessions.get(session, proposal.prompt_length)

        def judge() -> Batched:
            hidden = state.rows(proposal.start, len(proposal.token_ids) - proposal.prompt_length)
            return Batched(self._judge, (hidden, proposal))

        # The last token predicts nothing that is judged, so the engine never sees it.
        return await self._once_complete(state, proposal.token_ids[:-1], judge, reuse=True)

    async def score(
        self,
        trajectory: Trajectory,
        session: str | None = None,
        *,
        encode: Encode | None = None,
        together: Together | None = None,
    ) -> tuple[ScoreReport, Payload]:
        """A report and the payload, by `encode` where it is given.

        `session` ends; its rows are taken as far as they are of this response. Without one the engine does not read its
        cache: the numbers then do not depend on what it saw before.
        """
        known = None if session is None else self._sessions.pop(session)
        num_prompt = len(trajectory.prompt_ids)
        state = known if known is not None and known.prompt_length == num_prompt else Session(num_prompt)

        def encoded() -> Payload:
            hidden = state.rows(0, len(trajectory.response_ids))
            return (encode or self._encode)(hidden, trajectory.response_ids)

        payload = await self._once_complete(
            state, trajectory.token_ids[:-1], encoded, reuse=known is not None, together=together
        )
        num_tokens = len(trajectory.response_ids)
        self._scored_tokens += num_tokens
        return ScoreReport(num_tokens, payload.nbytes, state.engine_tokens, state.requests), payload

    def forget(self, session: str) -> None:
        """The response will not be finished. An unknown name is no error: the session may have been dropped."""
        self._sessions.pop(session)

    def report(self) -> TeacherReport:
        return TeacherReport(self._engine_tokens, self._requests, self._scored_tokens, len(self._sessions))

    async def _once_complete(
        self,
        state: Session,
        token_ids: TokenIds,
        then: Callable[[], Answer | Batched],
        *,
        reuse: bool,
        together: Together | None = None,
    ) -> Answer:
        """Run `then` in the engine's thread once `state` has the row of every slot that token_ids [P - 1 + n] predict.

        These are the slots 0 .. n - 1.
        """
        num_known = state.keep_common(token_ids)
        if num_known == len(token_ids):
            return await self._loop.command(lambda engine: then())

        def take(rows: HiddenRows) -> Answer | Batched:
            self._count(state, rows)
            # vLLM widens a bfloat16 model's rows to float32: nothing is lost, and a session takes half the memory.
            state.extend(token_ids, rows.hidden.to(self._dtype), rows.first)
            return then()

        ids = token_ids.tolist()
        return await self._loop.request_then(
            lambda engine, name: engine.add(name, ids, num_known=num_known if reuse else 0), take, together=together
        )

    def _count(self, state: Session, rows: HiddenRows) -> None:
        self._engine_tokens += len(rows.hidden)
        self._requests += 1
        state.engine_tokens += len(rows.hidden)
        state.requests += 1
