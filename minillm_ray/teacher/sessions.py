"""What a teacher replica keeps of the responses that are being drawn: their hidden states so far.

Slot t of a response is its token t; the hidden state that predicts it depends on the tokens before it, and on nothing
else. So a row stays good for as long as those tokens do, whatever was rejected or corrected after them.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TokenIds = npt.NDArray[np.int32]


@dataclass
class Session:
    """Rows of one response, and what they cost.

    prompt_length: P; token_ids: int32 [P - 1 + k], the tokens that the rows were computed from; hidden: [k, d_t], of
    slots 0 .. k - 1; engine_tokens, requests: what the engine computed and was asked for this response so far.
    """

    prompt_length: int
    token_ids: TokenIds = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    hidden: Tensor | None = None
    engine_tokens: int = 0
    requests: int = 0

    def keep_common(self, token_ids: TokenIds) -> int:
        """Drop the rows that other tokens than `token_ids` led to. Returns the first position whose row is lacking.

        Those before it are here, or are the prompt's, which nobody asks for.
        """
        common = _num_common(self.token_ids, token_ids)
        num_slots = 0 if self.hidden is None else min(len(self.hidden), max(0, common - self.prompt_length + 1))
        self._cut(num_slots)
        return self.prompt_length - 1 + num_slots

    def extend(self, token_ids: TokenIds, hidden: Tensor, first: int) -> None:
        """Take the rows of the slots that are not here yet from `hidden`, whose first row is that of position `first`.

        token_ids: int32 [L], all tokens that the rows were computed from; hidden: [L - first, d_t].
        """
        held = 0 if self.hidden is None else len(self.hidden)
        new = hidden[self.prompt_length - 1 + held - first :]
        # A copy either way: the engine's rows are a view of its whole batch.
        self.hidden = new.clone() if self.hidden is None else torch.cat([self.hidden, new])
        self.token_ids = token_ids

    def rows(self, start: int, end: int) -> Tensor:
        """[end - start, d_t], of slots start .. end - 1."""
        assert self.hidden is not None
        return self.hidden[start:end]

    def _cut(self, num_slots: int) -> None:
        self.hidden = None if self.hidden is None or num_slots == 0 else self.hidden[:num_slots]
        self.token_ids = self.token_ids[: self.prompt_length - 1 + num_slots]


class Sessions:
    """The open sessions by name. Beyond `limit` the one that was longest unused is dropped: it costs one pass."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str, prompt_length: int) -> Session:
        """The session, a new one where there is none of this name and prompt length."""
        session = self._open.get(name)
        if session is None or session.prompt_length != prompt_length:
            session = self._open[name] = Session(prompt_length)
        self._open.move_to_end(name)
        while len(self._open) > self._limit:
            self._open.popitem(last=False)
        return session

    def pop(self, name: str) -> Session | None:
        return self._open.pop(name, None)


def _num_common(left: TokenIds, right: TokenIds) -> int:
    """Length of the longest common beginning."""
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length
