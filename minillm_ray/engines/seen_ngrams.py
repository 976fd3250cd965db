"""Which tokens would repeat an n-gram. Semantics are those of transformers' NoRepeatNGramLogitsProcessor."""

from collections.abc import Sequence


class SeenNgrams:
    """The n-grams of a text that grows at its end, prompt included: which token has followed which n - 1 tokens."""

    def __init__(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"n is {n}; expected at least 2")
        self._num_before = n - 1
        self._followers: dict[tuple[int, ...], set[int]] = {}
        self._num_seen = 0

    def banned(self, token_ids: Sequence[int]) -> set[int]:
        """The ids that would end an n-gram which `token_ids` already has. It must extend the ids of the last call."""
        for end in range(max(self._num_seen, self._num_before), len(token_ids)):
            self._followers.setdefault(tuple(token_ids[end - self._num_before : end]), set()).add(token_ids[end])
        self._num_seen = len(token_ids)
        return self._followers.get(tuple(token_ids[-self._num_before :]), set())
