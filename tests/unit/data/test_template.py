"""A template puts its text around the fields and always ends with its cue."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_ray.config.errors import InputError
from minillm_ray.data.template import ALPACA, BARE, TEMPLATE_NAMES, load_template


def chat(tokenizer, content):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def test_alpaca_is_the_public_text_with_a_newline_after_the_cue():
    assert ALPACA.render("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n"
    )
    assert ALPACA.render("Add.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )


def test_bare_is_the_fields_and_an_arrow():
    assert BARE.render("Add.", "1 2") == "Add.\n1 2\n=>"
    assert BARE.render("Add.", "") == "Add.\n=>"


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_every_name_loads_a_template_that_survives_pickling(name, chat_tokenizer):
    template = load_template(name, chat_tokenizer)
    assert template.name == name
    assert pickle.loads(pickle.dumps(template)) == template


@given(instruction=st.text(), input=st.text())
@settings(deadline=None, derandomize=True)
def test_every_prompt_ends_with_the_cue_and_holds_both_fields(instruction, input):
    for template in (ALPACA, BARE):
        text = template.render(instruction, input)
        assert text.endswith(template.cue)
        assert instruction in text
        assert input in text


@pytest.mark.parametrize("fields", [("Add.", "1 2"), ("Add.", ""), (" padded\n", ""), ("a", " b \n")])
@pytest.mark.parametrize("trim", ["", " | trim"])
def test_chat_is_what_the_tokenizer_renders_for_instruction_blank_line_input(chat_tokenizer, fields, trim):
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("['content']", f"['content']{trim}")
    instruction, input = fields
    rendered = load_template("chat", chat_tokenizer).render(instruction, input)
    assert rendered == chat(chat_tokenizer, f"{instruction}\n\n{input}" if input else instruction)
    assert rendered.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_chat_keeps_the_system_message_that_the_tokenizer_adds(chat_tokenizer):
    chat_tokenizer.chat_template = "<|im_start|>system\nBe kind.<|im_end|>\n" + chat_tokenizer.chat_template
    rendered = load_template("chat", chat_tokenizer).render("Add.", "")
    assert rendered.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nAdd.")


def test_an_unknown_template_names_the_known_ones(tokenizer):
    with pytest.raises(InputError, match=r"data\.template is 'vicuna'; expected one of alpaca, chat, bare\. Set"):
        load_template("vicuna", tokenizer)


def test_chat_without_a_chat_template_says_what_to_set(tokenizer):
    with pytest.raises(InputError) as caught:
        load_template("chat", tokenizer)
    assert "data.template is 'chat', but the tokenizer (made in memory) has no chat template" in str(caught.value)
    assert "expected one in its folder" in str(caught.value)
    assert "Set data.template to alpaca" in str(caught.value)


def test_a_chat_template_that_fails_is_named_with_its_reason(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('a tool is needed') }}"
    with pytest.raises(InputError) as caught:
        load_template("chat", chat_tokenizer)
    assert "fails on a single user message" in str(caught.value)
    assert "a tool is needed" in str(caught.value)
    assert "Set data.template to alpaca" in str(caught.value)


@pytest.mark.parametrize("change", ["upper", "truncate(5)", "length"])
def test_a_chat_template_that_changes_the_message_is_refused(chat_tokenizer, change):
    chat_tokenizer.chat_template = "{{ messages[0]['content'] | " + change + " }}=>"
    with pytest.raises(
        InputError, match="changes the message itself; expected one that only puts text before and after"
    ):
        load_template("chat", chat_tokenizer)
