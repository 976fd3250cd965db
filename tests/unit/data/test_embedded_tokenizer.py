"""The embedded tokenizer encodes any text without loss, and is the same for the same examples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_ray.config.errors import InputError
from minillm_ray.data.embedded_tokenizer import train_tokenizer


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_any_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_has_a_token_and_the_end_of_text_is_eos_and_padding(tokenizer):
    assert len(tokenizer) == 400
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert sorted(tokenizer.get_vocab().values()) == list(range(400))


def test_the_template_and_common_words_are_whole_tokens(tokenizer):
    for text in ("=>", " the", " words"):
        assert len(tokenizer(text)["input_ids"]) == 1


def test_training_twice_gives_the_same_tokenizer(tokenizer, examples):
    assert train_tokenizer(examples, 400).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_vocabulary_without_room_for_the_bytes_is_refused(examples):
    with pytest.raises(InputError, match=r"vocab_size is 256; expected at least 257, .* Raise vocab_size"):
        train_tokenizer(examples, 256)
    assert len(train_tokenizer(examples, 257)) == 257


def test_a_vocabulary_larger_than_the_examples_can_fill_names_the_most_they_can(examples):
    with pytest.raises(InputError) as caught:
        train_tokenizer(examples[:20], 5000)
    message = str(caught.value)
    most = int(message.split("give only ")[1].split()[0])
    assert "vocab_size is 5000, but the 20 examples give only" in message
    assert "Lower vocab_size or take more examples" in message
    assert len(train_tokenizer(examples[:20], most)) == most
