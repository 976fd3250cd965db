"""Sets hold exactly what encoding gives, in order, and travel whole."""

import dataclasses
import pickle

import numpy as np
import pytest

from minillm_ray.data.encoding import encode_prompt, encode_supervised
from minillm_ray.data.instructions import Example
from minillm_ray.data.sets import build_prompt_set, build_supervised_set, fingerprint, lay_end_to_end
from minillm_ray.data.template import BARE


@pytest.fixture(scope="module")
def prompts(examples, tokenizer):
    return build_prompt_set(examples[:60], tokenizer, BARE, 12)


@pytest.fixture(scope="module")
def pairs(examples, tokenizer):
    return build_supervised_set(examples[:60], tokenizer, BARE, max_prompt_tokens=12, max_response_tokens=10)


def test_a_prompt_set_is_its_examples_in_order(prompts, examples, tokenizer):
    assert len(prompts) == 60
    for i, example in enumerate(examples[:60]):
        prompt = encode_prompt(example, tokenizer, BARE, max_prompt_tokens=12)
        assert prompts.prompt(i).tolist() == prompt.token_ids.tolist()
        assert prompts.texts[i] == prompt.text
        assert prompts.references[i] == example.references


def test_a_prompt_set_counts_its_cuts(prompts, examples, tokenizer):
    cut = [encode_prompt(example, tokenizer, BARE, max_prompt_tokens=12).cut for example in examples[:60]]
    assert 0 < prompts.num_cut == sum(cut) < 60


def test_a_supervised_set_is_its_examples_in_order_and_counts_what_was_lost(pairs, examples, tokenizer):
    alone = [
        encode_supervised(example, tokenizer, BARE, max_prompt_tokens=12, max_response_tokens=10)
        for example in examples[:60]
    ]
    for i, example in enumerate(alone):
        token_ids, prompt_length = pairs.example(i)
        assert token_ids.tolist() == example.token_ids.tolist()
        assert prompt_length == example.prompt_length
    assert len(pairs) == 60
    assert (pairs.num_cut, pairs.num_truncated, pairs.num_merged) == (
        sum(example.cut for example in alone),
        sum(example.truncated for example in alone),
        sum(example.merged for example in alone),
    )
    assert 0 < pairs.num_truncated < 60


def test_arrays_have_the_promised_types_and_cannot_be_written(prompts, pairs):
    for array, dtype in [
        (prompts.token_ids, np.int32),
        (prompts.offsets, np.int64),
        (pairs.token_ids, np.int32),
        (pairs.offsets, np.int64),
        (pairs.prompt_lengths, np.int32),
    ]:
        assert array.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompts.num_cut = 0


def test_an_item_is_a_view_not_a_copy(prompts, pairs):
    assert np.shares_memory(prompts.prompt(3), prompts.token_ids)
    assert np.shares_memory(pairs.example(3)[0], pairs.token_ids)


@pytest.mark.parametrize("index", [-1, 60])
def test_an_index_outside_the_set_is_an_error(prompts, pairs, index):
    with pytest.raises(IndexError, match=f"item {index} of a set of 60"):
        prompts.prompt(index)
    with pytest.raises(IndexError, match=f"item {index} of a set of 60"):
        pairs.example(index)


def test_sets_survive_pickling(prompts, pairs):
    prompts_again, pairs_again = pickle.loads(pickle.dumps((prompts, pairs), protocol=5))
    assert prompts_again.prompt(7).tolist() == prompts.prompt(7).tolist()
    assert prompts_again.references == prompts.references
    assert prompts_again.fingerprint == prompts.fingerprint
    assert pairs_again.example(7)[0].tolist() == pairs.example(7)[0].tolist()
    assert pairs_again.fingerprint == pairs.fingerprint


def test_the_fingerprint_knows_prompts_order_and_cuts(examples, tokenizer):
    def of(chosen):
        return build_prompt_set(chosen, tokenizer, BARE, 64).fingerprint

    first, second = examples[:2]
    assert of([first, second]) == of([first, dataclasses.replace(second, references=())])
    assert len({of([first, second]), of([second, first]), of([first]), of([])}) == 4
    same_ids = [np.array([1, 2], np.int32), np.array([3], np.int32)]
    other_cut = [np.array([1], np.int32), np.array([2, 3], np.int32)]
    assert fingerprint(*lay_end_to_end(same_ids)) != fingerprint(*lay_end_to_end(other_cut))


def test_the_fingerprint_is_a_constant_of_its_numbers():
    """A resumed run compares it with the one a checkpoint holds, perhaps written on another machine."""
    assert fingerprint(np.array([1, 2, 3], np.int32)) == "bce42e1c5c7278bdb3807188b0817b17"
    assert fingerprint(np.array([1, 2, 3], ">i8")) == fingerprint(np.array([1, 2, 3], np.int32))


def test_a_set_of_no_examples_is_empty(tokenizer):
    empty = build_prompt_set([], tokenizer, BARE, 64)
    assert len(empty) == 0
    assert empty.token_ids.dtype == np.int32
    assert len(build_supervised_set([], tokenizer, BARE, max_prompt_tokens=64, max_response_tokens=9)) == 0


def test_a_supervised_set_counts_merged_responses():
    from minillm_ray.data.embedded_tokenizer import train_tokenizer

    odd, plain = Example("a", "", ("!!yes",)), Example("a", "", ("yes",))
    tokenizer = train_tokenizer([odd] * 20, 262)
    pairs = build_supervised_set([odd, plain, odd], tokenizer, BARE, max_prompt_tokens=64, max_response_tokens=9)
    assert pairs.num_merged == 2
