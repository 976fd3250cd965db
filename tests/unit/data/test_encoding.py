"""Prompts fit and keep their cue; responses continue their prompts exactly and end with EOS."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_ray.config.errors import InputError
from minillm_ray.data.embedded_tokenizer import train_tokenizer
from minillm_ray.data.encoding import encode_prompt, encode_prompts, encode_supervised, encode_texts
from minillm_ray.data.instructions import Example
from minillm_ray.data.template import ALPACA, BARE, load_template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.text("cat dog=>\n1é日🙂", max_size=80)


class WithoutOffsets:
    """A tokenizer that cannot say where its tokens begin, as those without a Rust backend cannot."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts, *, add_special_tokens, return_attention_mask, verbose):
        return self._tokenizer(texts, add_special_tokens=add_special_tokens, verbose=verbose)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def supervised(example, tokenizer, template=BARE, max_prompt_tokens=1000, max_response_tokens=1000):
    return encode_supervised(
        example,
        tokenizer,
        template,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )


@pytest.mark.parametrize("offsets", [True, False])
@given(instruction=TEXTS, input=TEXTS, room=st.integers(0, 60))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_a_prompt_never_exceeds_max_prompt_tokens_and_never_loses_its_cue(tokenizer, offsets, instruction, input, room):
    max_prompt_tokens = len(ids_of(tokenizer, BARE.render("", ""))) + room
    example = Example(instruction, input, ())
    encoder = tokenizer if offsets else WithoutOffsets(tokenizer)
    prompt = encode_prompt(example, encoder, BARE, max_prompt_tokens=max_prompt_tokens)
    uncut = BARE.render(instruction, input)
    assert len(prompt.token_ids) <= max_prompt_tokens
    assert prompt.token_ids.dtype == np.int32
    assert prompt.token_ids.tolist() == ids_of(tokenizer, prompt.text)
    assert prompt.text.endswith(BARE.cue)
    assert prompt.cut == (len(ids_of(tokenizer, uncut)) > max_prompt_tokens)
    assert prompt.cut or prompt.text == uncut


@given(words=st.lists(st.sampled_from(["cat", "dog", "river", "naïve", "日本"]), min_size=40, max_size=80))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_a_cut_takes_the_middle_of_the_input_and_little_more_than_needed(tokenizer, words):
    input = " ".join(words)
    prompt = encode_prompt(Example("Repeat the words.", input, ()), tokenizer, BARE, max_prompt_tokens=40)
    assert prompt.cut
    kept = prompt.text.removeprefix("Repeat the words.\n").removesuffix(BARE.cue)
    assert any(input.startswith(kept[:i]) and input.endswith(kept[i:]) for i in range(len(kept)))
    assert len(prompt.token_ids) > 30


def test_a_cut_keeps_both_ends_of_the_input_and_the_whole_instruction(tokenizer):
    input = "first words of it " + "and so on " * 200 + "the very last words"
    prompt = encode_prompt(Example("Repeat the words.", input, ()), tokenizer, ALPACA, max_prompt_tokens=160)
    assert 150 < len(prompt.token_ids) <= 160
    assert "### Instruction:\nRepeat the words.\n\n### Input:\nfirst words" in prompt.text
    assert prompt.text.endswith("very last words\n\n### Response:\n")


def test_without_room_for_any_input_the_instruction_loses_its_middle(tokenizer):
    instruction = "Begin here " + "and go on " * 50 + "and end here"
    prompt = encode_prompt(Example(instruction, "some input", ()), tokenizer, BARE, max_prompt_tokens=20)
    assert prompt.cut
    assert prompt.text.startswith("Begin")
    assert prompt.text.endswith("end here\n=>")
    assert "some input" not in prompt.text


def test_a_template_with_an_input_part_drops_that_part_with_the_input(tokenizer):
    smallest = len(ids_of(tokenizer, ALPACA.render("", "")))
    prompt = encode_prompt(
        Example("Repeat the words.", "cat " * 50, ()), tokenizer, ALPACA, max_prompt_tokens=smallest + 6
    )
    assert "### Input:" not in prompt.text
    assert prompt.text.endswith("### Response:\n")


@pytest.mark.parametrize("name", ["alpaca", "bare", "chat"])
def test_the_smallest_workable_limit_of_the_message_works(chat_tokenizer, name):
    template = load_template(name, chat_tokenizer)
    example = Example("Repeat the words.", "cat dog " * 30, ())
    with pytest.raises(InputError) as caught:
        encode_prompt(example, chat_tokenizer, template, max_prompt_tokens=1)
    smallest = len(ids_of(chat_tokenizer, template.render("", "")))
    assert f"max_prompt_tokens is 1, but the template '{name}' takes {smallest} tokens" in str(caught.value)
    assert f"expected at least {smallest}" in str(caught.value)
    assert "Raise max_prompt_tokens" in str(caught.value)
    prompt = encode_prompt(example, chat_tokenizer, template, max_prompt_tokens=smallest)
    assert len(prompt.token_ids) <= smallest
    assert prompt.text.endswith(template.cue)


def test_no_token_is_added_in_front_or_behind(tokenizer):
    tokenizer_with_bos = train_tokenizer([Example("a b", "", ("c",))], 257)
    tokenizer_with_bos.add_special_tokens({"bos_token": "<s>"})
    prompt = encode_prompt(Example("ab", "", ()), tokenizer_with_bos, BARE, max_prompt_tokens=10)
    assert len(prompt.token_ids) == len("ab\n=>")


def test_a_short_model_max_length_of_the_tokenizer_neither_cuts_nor_warns(examples, capfd, caplog):
    tokenizer = train_tokenizer(examples[:100], 300)
    tokenizer.model_max_length = 4
    prompt = encode_prompt(Example("Repeat the words.", "cat dog", ()), tokenizer, BARE, max_prompt_tokens=100)
    assert tokenizer.decode(prompt.token_ids) == "Repeat the words.\ncat dog\n=>"
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")


def test_encoding_many_is_encoding_each(tokenizer, examples):
    many = encode_prompts(examples[:50], tokenizer, BARE, max_prompt_tokens=12)
    for example, prompt in zip(examples[:50], many, strict=True):
        alone = encode_prompt(example, tokenizer, BARE, max_prompt_tokens=12)
        assert prompt.token_ids.tolist() == alone.token_ids.tolist()
    assert encode_texts(tokenizer, []) == []


@given(instruction=TEXTS, input=TEXTS, response=TEXTS.filter(bool))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_a_response_decodes_to_its_reference_and_ends_with_eos(tokenizer, instruction, input, response):
    example = supervised(Example(instruction, input, (response,)), tokenizer)
    prompt_ids, response_ids = np.split(example.token_ids, [example.prompt_length])
    assert prompt_ids.tolist() == ids_of(tokenizer, BARE.render(instruction, input))
    assert response_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(response_ids[:-1]) == response
    assert not example.truncated


def test_the_first_reference_is_what_is_learnt(tokenizer):
    example = supervised(Example("Name a fruit.", "", ("fig", "plum")), tokenizer)
    assert tokenizer.decode(example.token_ids) == "Name a fruit.\n=>fig<|endoftext|>"


def test_a_token_across_cue_and_response_is_avoided_and_told():
    tokenizer = train_tokenizer([Example("a", "", ("!!yes",))] * 20, 262)
    assert len(ids_of(tokenizer, "=>!!")) == 1
    example = supervised(Example("a", "", ("!!yes",)), tokenizer)
    assert example.merged
    assert example.token_ids[: example.prompt_length].tolist() == ids_of(tokenizer, "a\n=>")
    assert tokenizer.decode(example.token_ids) == "a\n=>!!yes<|endoftext|>"
    assert not supervised(Example("a", "", ("yes",)), tokenizer).merged


@pytest.mark.parametrize(("limit", "truncated"), [(4, False), (3, True), (2, True), (1, True)])
def test_a_response_too_long_for_its_eos_keeps_its_first_tokens_and_no_eos(limit, truncated):
    tokenizer = train_tokenizer([Example("x", "", ("y",))], 257)
    example = supervised(Example("x", "", ("abc",)), tokenizer, max_response_tokens=limit)
    response_ids = example.token_ids[example.prompt_length :]
    assert len(response_ids) == min(limit, 4)
    assert example.truncated is truncated
    assert (tokenizer.eos_token_id in response_ids) is not truncated
    assert tokenizer.decode(response_ids, skip_special_tokens=True) == "abc"[:limit]


def test_a_cut_prompt_is_the_same_with_and_without_its_response(tokenizer):
    example = Example("Repeat the words.", "cat dog " * 100, ("cat dog",))
    prompt = encode_prompt(example, tokenizer, BARE, max_prompt_tokens=30)
    pair = supervised(example, tokenizer, max_prompt_tokens=30)
    assert pair.cut
    assert pair.token_ids[: pair.prompt_length].tolist() == prompt.token_ids.tolist()


def test_an_example_without_output_cannot_be_learnt(tokenizer):
    with pytest.raises(
        InputError, match=r"'Name a fruit.' has no output; supervised training expects one .* Fill it in"
    ):
        supervised(Example("Name a fruit.", "", ()), tokenizer)


def test_a_tokenizer_without_eos_cannot_end_a_response(chat_tokenizer):
    chat_tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"has no EOS token; expected one.*Set eos_token in its tokenizer_config.json"):
        supervised(Example("a", "", ("b",)), chat_tokenizer)
