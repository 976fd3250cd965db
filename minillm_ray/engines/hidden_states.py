"""What the scoring side asks of an engine: token ids in, final-norm hidden states of the tokens it computed out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HiddenRows:
    """A finished request of L tokens. hidden: [L - first, d_t], positions first .. L - 1, on the CPU.

    Position k predicts token k + 1. What lies before `first` was read from the prefix cache, which holds no such rows.
    """

    request_id: str
    hidden: Tensor
    first: int


class HiddenStateEngine(ABC):
    """Stepped by its owner. Times the model's head, a row is the full distribution of the next token."""

    @property
    @abstractmethod
    def block_tokens(self) -> int:
        """The prefix cache keeps whole blocks of so many tokens. 1 where there is no cache."""

    @abstractmethod
    def add(self, request_id: str, token_ids: Sequence[int], *, num_known: int = 0) -> None:
        """Queue a sequence of at least one token.

        num_known: the caller needs no rows of so many first tokens. They are read from the cache as far as it has them;
        rows come from the first token on that was computed, which is none behind these.
        """

    @abstractmethod
    def step(self) -> list[HiddenRows]:
        """One engine step. Returns the requests that finished."""

    @abstractmethod
    def has_unfinished(self) -> bool: ...

    @abstractmethod
    def abort(self, request_ids: Sequence[str]) -> None: ...

    def hidden_states(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each sequence of L tokens all of its rows [L, d_t], in order. The engine must have nothing else to do."""
        for number, token_ids in enumerate(sequences):
            self.add(str(number), token_ids)
        finished: dict[int, Tensor] = {}
        while self.has_unfinished():
            finished.update((int(rows.request_id), rows.hidden) for rows in self.step())
        return [finished[number] for number in range(len(sequences))]
