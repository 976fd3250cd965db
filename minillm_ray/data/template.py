"""Prompt templates: how an instruction and its input become the text that the model continues.

A template is five pieces of text around the two fields, so that an overlong field can be cut without touching what
stands around it; the last piece, the cue, is what tells the model to answer. Not here: token ids (encoding).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError
from minillm_ray.data.vocabulary import tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("How many moons has Mars?", "Mars\n\nhas two")
_PADDED_PROBE = "\n padded \n"


@dataclass(frozen=True)
class Template:
    """The text around the fields. Picklable, and free of any tokenizer."""

    name: str
    opening: str
    """Stands before the instruction when there is no input."""
    opening_with_input: str
    """Stands before the instruction when there is an input."""
    between: str
    """Stands between instruction and input; left out when there is no input."""
    cue: str
    """Stands last: the response follows it directly."""
    strips: bool = False
    """White space around instruction and input together is dropped, as this model's chat template does."""

    def render(self, instruction: str, input: str) -> str:
        """The prompt as text. It always ends with the cue."""
        content = f"{instruction}{self.between}{input}" if input else instruction
        if self.strips:
            content = content.strip()
        return f"{self.opening_with_input if input else self.opening}{content}{self.cue}"


# The two public templates of tatsu-lab/stanford_alpaca, word for word; theirs end without the last newline.
ALPACA = Template(
    name="alpaca",
    opening=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n"
    ),
    opening_with_input=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n"
    ),
    between="\n\n### Input:\n",
    cue="\n\n### Response:\n",
)

# Three characters around the fields: for models so small that every prompt token counts.
BARE = Template(name="bare", opening="", opening_with_input="", between="\n", cue="\n=>")

TEMPLATE_NAMES = ("alpaca", "chat", "bare")


def load_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The template of that name: `alpaca`, `bare`, or `chat`, the tokenizer's own chat template.

    Raises InputError if there is none of that name, or if the tokenizer's chat template is missing or does more than
    put text around the message.
    """
    if name == "alpaca":
        return ALPACA
    if name == "bare":
        return BARE
    if name == "chat":
        return _chat_template(tokenizer)
    raise InputError(
        f"data.template is {name!r}; expected one of {', '.join(TEMPLATE_NAMES)}. Set data.template to one"
    )


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> Template:
    """The tokenizer's chat template around one user message `instruction`, blank line, `input`."""
    if not tokenizer.chat_template:
        raise InputError(
            f"data.template is 'chat', but the tokenizer {tokenizer_name(tokenizer)} has no chat template; "
            "expected one in its folder. Set data.template to alpaca, or take an instruction-tuned model"
        )
    rendered = _render_chat(tokenizer, _PROBES[0])
    opening, found, cue = rendered.partition(_PROBES[0])
    strips = _PADDED_PROBE not in _render_chat(tokenizer, _PADDED_PROBE)
    template = Template(
        name="chat", opening=opening, opening_with_input=opening, between="\n\n", cue=cue, strips=strips
    )
    faithful = all(template.render(probe, "") == _render_chat(tokenizer, probe) for probe in (*_PROBES, _PADDED_PROBE))
    if not found or not faithful:
        raise InputError(
            f"the chat template of {tokenizer_name(tokenizer)} changes the message itself; expected one that only puts "
            "text before and after it. Set data.template to alpaca"
        )
    return template


def _render_chat(tokenizer: "PreTrainedTokenizerBase", content: str) -> str:
    messages = [{"role": "user", "content": content}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # A chat template is a program that came with the model: what it raises is not known here.
    except Exception as error:
        raise InputError(
            f"the chat template of {tokenizer_name(tokenizer)} fails on a single user message ({type(error).__name__}: "
            f"{error}); expected one that renders it. Set data.template to alpaca"
        ) from error
    return str(text)
