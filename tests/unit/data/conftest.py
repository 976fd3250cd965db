"""Tokenizers and files that the tests of this room share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm_ray.data.embedded import generate_examples
from minillm_ray.data.embedded_tokenizer import train_tokenizer
from minillm_ray.data.instructions import Example

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return generate_examples(900, 0, seed=0)[0]


@pytest.fixture(scope="session")
def tokenizer(examples):
    return train_tokenizer(examples, 400)


@pytest.fixture
def chat_tokenizer(examples):
    """A tokenizer of its own for each test, with a chat template."""
    tokenizer = train_tokenizer(examples[:300], 300)
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes the rows as JSON lines and returns the path."""

    def write(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
