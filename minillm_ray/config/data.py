"""Section `data`: where prompts and responses come from, and how a row becomes tokens."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class DataSection(Section):
    """Rows of {instruction, input, output}. A source is a .jsonl or .parquet file, a Hugging Face id, or `embedded`."""

    train: str
    """Prompts of MiniLLM, prompt and response pairs of SFT. `embedded` is the quick start's own data."""
    held_out: str
    """Never trained on: validation loss of SFT, and the prompts of the closing table."""
    template: Literal["alpaca", "chat", "bare"] = "alpaca"
    """How a row becomes a prompt: the public Alpaca text, the tokenizer's own chat template, or a bare line."""
    max_prompt_tokens: int = Field(256, ge=8)
    """A longer prompt loses the middle of its input field, never the response cue; such prompts are counted."""
    plain_text: str | None = None
    """A UTF-8 file, one document a line, for the language-modelling term of MiniLLM; null leaves the term out."""
    text_chunk_tokens: int = Field(512, ge=2)
    """Tokens of one chunk of plain text."""
    train_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the training source; null for all."""
    held_out_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the held-out source; null for all."""
