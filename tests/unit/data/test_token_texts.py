"""The texts of the tokens, one after the other, are the text; no token's text depends on the ones after it."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.data.token_texts import token_texts


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_texts_together_are_the_text(tokenizer, text):
    """One text a token, whatever the language."""
    token_ids = tokenizer(text)["input_ids"]
    texts = token_texts(token_ids, tokenizer.decode)
    assert len(texts) == len(token_ids)
    assert "".join(texts) == text


def test_a_character_of_several_tokens_stands_at_the_last_of_them(tokenizer):
    """The snowman has three bytes, and this vocabulary a token for each."""
    token_ids = tokenizer("☃")["input_ids"]
    assert len(token_ids) == 3
    assert token_texts(token_ids, tokenizer.decode) == ["", "", "☃"]


def test_bytes_that_are_no_text_are_shown_within_four_tokens(tokenizer):
    """A student at the start of training may draw them without end: "" all along would hide that."""
    (lead, *_) = tokenizer("☃")["input_ids"]
    texts = token_texts([lead] * 9, tokenizer.decode)
    assert "".join(texts) == "\ufffd" * 9
    assert texts.count("") <= 6


def test_the_space_before_a_word_is_kept_where_decoding_drops_it_at_the_start():
    """As sentencepiece does: "_a _b" alone decodes to "a b", and "_b" alone to "b"."""

    def decode(token_ids: Sequence[int]) -> str:
        return "".join(["", " one", " two", "s"][token_id] for token_id in token_ids).lstrip(" ")

    assert token_texts([1, 2, 3, 1], decode) == ["one", " two", "s", " one"]
