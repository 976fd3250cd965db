"""Blocks of keys and values, found by what lies in them: the longest common beginning, never what was overwritten."""

from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_ray.engines.block_contents import BlockContents

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=4)


def common(left: list[int], right: list[int]) -> int:
    return next((k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@settings(max_examples=300)
@given(
    written=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["x", None]), TOKENS), min_size=4, max_size=12),
    forgotten=st.sets(st.integers(0, 6)),
    before=st.sampled_from(["x", None]),
    wanted=TOKENS,
)
def test_the_best_block_is_the_best_of_all_that_are_known(
    written: list[tuple[int, str | None, list[int]]], forgotten: set[int], before: str | None, wanted: list[int]
) -> None:
    """By trying each, as it was written last, of those that follow the same tokens."""
    contents, expected = BlockContents(), {}
    for block, place, token_ids in written:
        contents.put(block, place, token_ids)
        expected[block] = place, token_ids
    for block in forgotten:
        contents.forget(block)
        expected.pop(block, None)
    block, length = contents.best(before, wanted)
    lengths = {number: common(held, wanted) for number, (place, held) in expected.items() if place == before}
    assert length == max(lengths.values(), default=0)
    assert length == 0 or lengths[block] == length
    assert len(contents) == len(expected)
