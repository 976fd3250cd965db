"""Which tokens lie in a block of keys and values, also after the request that computed them is gone. Pure.

vLLM finds a block again by the hash of all tokens up to its end, so only where they are the same to the last. Here a
block is found by what lies before it, and is good for as many tokens as it has in common with those that are asked for.
"""

from collections.abc import Hashable, Sequence


class BlockContents:
    """Blocks by number. `before` stands for all tokens ahead of a block: equal only where these are."""

    def __init__(self) -> None:
        self._known: dict[Hashable, dict[int, tuple[int, ...]]] = {}
        self._before: dict[int, Hashable] = {}

    def __len__(self) -> int:
        return len(self._before)

    def put(self, block: int, before: Hashable, token_ids: Sequence[int]) -> None:
        """What lies in the block now, in place of what did."""
        self.forget(block)
        self._before[block] = before
        self._known.setdefault(before, {})[block] = tuple(token_ids)

    def forget(self, block: int) -> None:
        """It will be written anew. An unknown one is no error."""
        if block not in self._before:
            return
        before = self._before.pop(block)
        beside = self._known[before]
        del beside[block]
        if not beside:
            del self._known[before]

    def best(self, before: Hashable, token_ids: Sequence[int]) -> tuple[int, int]:
        """The block that has the longest common beginning with `token_ids`, and its length; it is 0 if none has."""
        asked = tuple(token_ids)
        best = 0, 0
        for block, held in reversed(self._known.get(before, {}).items()):  # what goes on goes on from the newest
            length = _num_common(held, asked)
            if length > best[1]:
                best = block, length
            if length == len(asked):
                break
        return best


def _num_common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(k for k in range(length) if left[k] != right[k])
