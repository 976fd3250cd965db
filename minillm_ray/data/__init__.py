"""Prompts, supervised pairs and plain text, as flat arrays of token ids.

    a file or an id -> rows -> Example -> Template -> token ids -> PromptSet | SupervisedSet
    plain text -> TextChunks          seed -> embedded examples and their tokenizer

Importing this room is cheap: NumPy and the errors of `config`. Readers, tokenizers and transformers are imported
where they are used.
"""

from minillm_ray.data.batches import cut_batches, epoch_order
from minillm_ray.data.embedded import EmbeddedPaths, generate_examples, write_embedded
from minillm_ray.data.embedded_tokenizer import train_tokenizer
from minillm_ray.data.encoding import EncodedExample, EncodedPrompt, encode_prompt, encode_supervised
from minillm_ray.data.instructions import Example, read_examples
from minillm_ray.data.plain_text import TextChunks, read_chunks
from minillm_ray.data.sets import PromptSet, SupervisedSet, build_prompt_set, build_supervised_set, pair_prompts
from minillm_ray.data.template import TEMPLATE_NAMES, Template, load_template
from minillm_ray.data.vocabulary import load_tokenizer, require_same_vocabulary

__all__ = [
    "TEMPLATE_NAMES",
    "EmbeddedPaths",
    "EncodedExample",
    "EncodedPrompt",
    "Example",
    "PromptSet",
    "SupervisedSet",
    "Template",
    "TextChunks",
    "build_prompt_set",
    "build_supervised_set",
    "cut_batches",
    "encode_prompt",
    "encode_supervised",
    "epoch_order",
    "generate_examples",
    "load_template",
    "load_tokenizer",
    "pair_prompts",
    "read_chunks",
    "read_examples",
    "require_same_vocabulary",
    "train_tokenizer",
    "write_embedded",
]
