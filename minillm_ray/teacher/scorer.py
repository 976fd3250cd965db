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
from minillm_ray.engines.heads import head_logits
from minillm_ray.engines.hidden_states import HiddenRows, HiddenStateEngine
from minillm_ray.engines.loop import Batched, EngineLoop, Together
from minillm_ray.engines.truncation import log_probabilities
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.objective import Head
from minillm_ray.teacher.sessions import Session, Sessions, TokenIds

Answer = TypeVar("Answer")
Encode = Callable[[Tensor, npt.NDArray[np.int32]], Payload]
"""Hidden states [n, d_t] and response ids [n] to a payload. Runs in the engine's thread."""

_CHUNK_BYTES = 2**26
"""Of one matrix of logits: a long proposal over a large vocabulary takes several, and fits beside an engine."""


@dataclass(frozen=True)
class Sampling:
    """How the teacher's distribution is drawn from, by the terms of minillm_ray.engines.truncation."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


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
        self._head = head
        self._encode = encode
        self._dtype = dtype
        self._sampling = sampling
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
        if state.keep_common(token_ids) == len(token_ids) - state.prompt_length + 1:
            return await self._loop.command(lambda engine: then())

        def take(rows: HiddenRows) -> Answer | Batched | None:
            self._count(state, rows)
            if state.lacks(rows.first):
                return None
            # vLLM widens a bfloat16 model's rows to float32: nothing is lost, and a session takes half the memory.
            state.extend(token_ids, rows.hidden.to(self._dtype), rows.first)
            return then()

        ids = token_ids.tolist()
        answer = await self._loop.request_then(
            lambda engine, name: engine.add(name, ids, reuse=reuse), take, together=together
        )
        if answer is None:
            # Another response with the same tokens filled the cache, or the session began on a replica that is gone.
            answer = await self._loop.request_then(lambda engine, name: engine.add(name, ids, reuse=False), take)
        assert answer is not None
        return answer

    def _count(self, state: Session, rows: HiddenRows) -> None:
        self._engine_tokens += len(rows.hidden)
        self._requests += 1
        state.engine_tokens += len(rows.hidden)
        state.requests += 1

    def _judge(self, asked: list[tuple[Tensor, Proposal]]) -> list[Verdict]:
        """Verdicts on proposals with their hidden states [n - start, d_t], each of the proposed slots.

        All slots of all proposals go through the head together: a product of few rows costs as much as one of many,
        since it reads the whole head. Raises FloatingPointError for a teacher that yields NaN.
        """
        hidden = torch.cat([rows for rows, _ in asked])
        proposed = [proposal.token_ids[proposal.prompt_length + proposal.start :] for _, proposal in asked]
        token_ids = torch.from_numpy(np.concatenate(proposed).astype(np.int64))
        threshold = torch.from_numpy(np.concatenate([proposal.log_threshold for _, proposal in asked]))
        owner = torch.arange(len(asked)).repeat_interleave(torch.tensor([len(ids) for ids in proposed]))
        logprob = torch.empty(len(hidden))
        fallen: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}
        for slots in torch.arange(len(hidden)).split(max(1, _CHUNK_BYTES // (4 * self._num_columns))):
            rows = self._log_probabilities(hidden[slots])
            logprob[slots] = rows.gather(1, token_ids[slots].to(rows.device)[:, None])[:, 0].cpu()
            for slot in slots[~(logprob[slots] >= threshold[slots])].tolist():
                if int(owner[slot]) not in fallen:
                    fallen[int(owner[slot])] = slot, rows[slot - int(slots[0])].cpu().numpy().copy()
        verdicts, begin = [], 0
        for place, ids in enumerate(proposed):
            end, row = fallen.get(place, (begin + len(ids), None))
            stands = logprob[begin:end].numpy()
            if np.isnan(stands).any() or (row is not None and np.isnan(row).any()):
                raise FloatingPointError(
                    "the teacher's log-probabilities are not numbers: its weights or its dtype are wrong"
                )
            verdicts.append(Verdict(stands, row))
            begin += len(ids)
        return verdicts

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        """float32 [n, V], of hidden states [n, d_t]: the teacher's distributions as they are drawn from."""
        sampling = self._sampling
        return log_probabilities(head_logits(hidden, self._head), sampling.temperature, sampling.top_k, sampling.top_p)

    @property
    def _num_columns(self) -> int:
        return self._head.vocab_size or len(self._head.weight)
