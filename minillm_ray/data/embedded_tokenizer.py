"""The tokenizer of the embedded data: byte-level BPE, trained on the spot.

Byte-level: any text has ids and comes back whole. Deterministic: the same examples and size give the same bytes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError
from minillm_ray.data.instructions import Example
from minillm_ray.data.template import BARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_SMALLEST_VOCABULARY = 257  # the 256 bytes and END_OF_TEXT


def train_tokenizer(examples: Sequence[Example], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of exactly vocab_size tokens, END_OF_TEXT (id 0) being EOS and padding.

    Trained on the examples as the `bare` template renders them, first references included.

    Raises InputError if vocab_size is below the 257 that every text needs, or above what the examples have pairs for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _SMALLEST_VOCABULARY:
        raise InputError(
            f"vocab_size is {vocab_size}; expected at least {_SMALLEST_VOCABULARY}, the 256 bytes and the end of text. "
            "Raise vocab_size"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (BARE.render(example.instruction, example.input) + "".join(example.references[:1]) for example in examples),
        trainer=trainer,
    )
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"vocab_size is {vocab_size}, but the {len(examples)} examples give only {tokenizer.get_vocab_size()} "
            "tokens; expected no more than that. Lower vocab_size or take more examples"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
