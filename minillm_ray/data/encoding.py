"""Examples become token ids.

    Example -> template -> prompt text -> (cut to fit) -> prompt ids
                                     \\-> prompt + response as one text -> response ids, then EOS

Invariants: a prompt has at most max_prompt_tokens tokens and always ends with the template's cue; its ids are those
of its text, so nothing is decoded and encoded again later. No BOS is added; a template that wants one writes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minillm_ray.config.errors import InputError
from minillm_ray.data.instructions import Example
from minillm_ray.data.template import Template
from minillm_ray.data.vocabulary import require_eos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt ready for a model."""

    token_ids: TokenIds
    """int32 [prompt tokens], the ids of `text`."""
    text: str
    """What the ids say, cut included."""
    cut: bool
    """The middle of the input field (or of the instruction) was cut to fit."""


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """A prompt and the response that supervised training learns."""

    token_ids: TokenIds
    """int32 [prompt + response tokens]; EOS last unless truncated."""
    prompt_length: int
    """Tokens of the prompt: the first trained token is token_ids[prompt_length]."""
    cut: bool
    """The prompt was cut to fit."""
    truncated: bool
    """The response was too long: it lost its end, and EOS with it."""
    merged: bool
    """A token of the joint text spans the cue and the response, so the response was tokenised by itself."""


def encode_prompt(
    example: Example, tokenizer: "PreTrainedTokenizerBase", template: Template, *, max_prompt_tokens: int
) -> EncodedPrompt:
    """The prompt of one example, as `encode_prompts` does it."""
    return encode_prompts([example], tokenizer, template, max_prompt_tokens=max_prompt_tokens)[0]


def encode_prompts(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", template: Template, *, max_prompt_tokens: int
) -> list[EncodedPrompt]:
    """The prompts of the examples, in their order, each of at most max_prompt_tokens tokens.

    An overlong prompt loses the middle of its input field; if the whole field is not enough, then the field and the
    middle of the instruction. The template's own text, the cue above all, stays whole.

    Raises InputError if the template alone is longer than max_prompt_tokens.
    """
    texts = [template.render(example.instruction, example.input) for example in examples]
    prompts = []
    for example, text, token_ids in zip(examples, texts, encode_texts(tokenizer, texts), strict=True):
        if len(token_ids) <= max_prompt_tokens:
            prompts.append(EncodedPrompt(token_ids=token_ids, text=text, cut=False))
        else:
            prompts.append(_cut_prompt(example, tokenizer, template, max_prompt_tokens))
    return prompts


def encode_supervised(
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> EncodedExample:
    """Prompt, response and EOS of one example, as `encode_all_supervised` does it."""
    encoded = encode_all_supervised(
        [example],
        tokenizer,
        template,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )
    return encoded[0]


def encode_all_supervised(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> list[EncodedExample]:
    """Prompt, response (the first reference) and EOS of the examples, in their order.

    Prompt and response are tokenised as one text and the response is what follows the prompt's ids. Where the joint
    ids do not begin with the prompt's, the response is tokenised by itself (`merged`). Response and EOS together have
    at most max_response_tokens tokens; one that has more keeps its first ones and no EOS (`truncated`).

    Raises InputError if an example has no reference, the tokenizer no EOS, or as `encode_prompts` does.
    """
    eos_token_id = require_eos(tokenizer)
    responses = [_response(example) for example in examples]
    prompts = encode_prompts(examples, tokenizer, template, max_prompt_tokens=max_prompt_tokens)
    joint_texts = [prompt.text + response for prompt, response in zip(prompts, responses, strict=True)]
    encoded = []
    for prompt, response, joint_ids in zip(prompts, responses, encode_texts(tokenizer, joint_texts), strict=True):
        length = len(prompt.token_ids)
        merged = not np.array_equal(joint_ids[:length], prompt.token_ids)
        response_ids = encode_texts(tokenizer, [response])[0] if merged else joint_ids[length:]
        truncated = len(response_ids) + 1 > max_response_tokens
        response_ids = response_ids[:max_response_tokens] if truncated else np.append(response_ids, eos_token_id)
        encoded.append(
            EncodedExample(
                token_ids=np.concatenate([prompt.token_ids, response_ids]).astype(np.int32),
                prompt_length=length,
                cut=prompt.cut,
                truncated=truncated,
                merged=merged,
            )
        )
    return encoded


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[TokenIds]:
    """The ids of each text, int32 [tokens], with nothing added in front or behind."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(token_ids, dtype=np.int32) for token_ids in encoded["input_ids"]]


def _response(example: Example) -> str:
    if not example.references:
        raise InputError(
            f"the example {example.instruction[:80]!r} has no output; supervised training expects one for each "
            "example. Fill it in or remove the row"
        )
    return example.references[0]


def _cut_prompt(
    example: Example, tokenizer: "PreTrainedTokenizerBase", template: Template, max_prompt_tokens: int
) -> EncodedPrompt:
    """The longest fitting cut of the input field; without any input left, the longest of the instruction."""
    fields: list[tuple[str, Callable[[str], str]]] = [
        (example.input, lambda kept: template.render(example.instruction, kept)),
        (example.instruction, lambda kept: template.render(kept, "")),
    ]
    for field, render in fields:
        prompt = _cut_field(field, render, tokenizer, max_prompt_tokens)
        if prompt is not None:
            return prompt
    smallest = len(encode_texts(tokenizer, [template.render("", "")])[0])
    raise InputError(
        f"max_prompt_tokens is {max_prompt_tokens}, but the template {template.name!r} takes {smallest} tokens before "
        f"the instruction has any; expected at least {smallest}. Raise max_prompt_tokens, or choose a shorter "
        "data.template"
    )


def _cut_field(
    field: str, render: Callable[[str], str], tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int
) -> EncodedPrompt | None:
    """The prompt with the middle of the field gone, until it fits; None if not even all of the field is enough.

    The field is cut where its tokens begin, so no character is split. Each try drops as many tokens as the last one
    was over: joining the two ends can make other tokens, so the length is measured each time, never assumed.
    """
    starts = _token_starts(field, tokenizer)
    cuts = [*starts, len(field)]
    num_kept = len(starts)
    while True:
        num_last = num_kept // 2
        text = render(field[: cuts[num_kept - num_last]] + field[cuts[len(starts) - num_last] :])
        token_ids = encode_texts(tokenizer, [text])[0]
        excess = len(token_ids) - max_prompt_tokens
        if excess <= 0:
            return EncodedPrompt(token_ids=token_ids, text=text, cut=True)
        if num_kept == 0:
            return None
        num_kept = max(0, num_kept - excess)


def _token_starts(field: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The character where each token of the field begins, ascending; every character if the tokenizer cannot say.

    Tokens that share a character (bytes of one that has no token of its own) begin at the same place.
    """
    if not field or not tokenizer.is_fast:
        return list(range(len(field)))
    encoded = tokenizer(field, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [0, *sorted(start for start, _ in encoded["offset_mapping"][1:])]
