"""Tokenised data sets as roles share them: a few flat arrays, so Ray's object store hands them out without a copy.

    examples -> PromptSet      prompts and their references: MiniLLM, evaluation
             -> SupervisedSet  prompts with responses: SFT, word-level KD; SeqKD with the teacher's own

Frozen and picklable; the arrays are read-only. Item i is always the i-th example: order is batches' business.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minillm_ray.data.encoding import TokenIds, encode_all_supervised, encode_prompts
from minillm_ray.data.instructions import Example
from minillm_ray.data.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PromptSet:
    """n prompts laid end to end."""

    token_ids: TokenIds
    """int32 [total tokens]."""
    offsets: Offsets
    """int64 [n + 1]; prompt i is token_ids[offsets[i]:offsets[i + 1]]."""
    references: tuple[tuple[str, ...], ...]
    """n tuples of right answers; a tuple is empty where the data has none."""
    texts: tuple[str, ...]
    """n prompts as text, exactly what was tokenised."""
    num_cut: int
    """Prompts that were cut to fit max_prompt_tokens."""
    fingerprint: str
    """Hash of the ids and their cuts: equal for equal prompts in equal order, on any machine."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def prompt(self, index: int) -> TokenIds:
        """The ids of one prompt, int32 [prompt tokens], a read-only view. Raises IndexError outside 0 <= index < n."""
        return _item(self.token_ids, self.offsets, index)


@dataclass(frozen=True, eq=False)
class SupervisedSet:
    """n prompts with their responses laid end to end."""

    token_ids: TokenIds
    """int32 [total tokens]."""
    offsets: Offsets
    """int64 [n + 1]; example i is token_ids[offsets[i]:offsets[i + 1]]."""
    prompt_lengths: TokenIds
    """int32 [n]; the first so many tokens of an example are its prompt."""
    num_cut: int
    """Prompts that were cut to fit max_prompt_tokens."""
    num_truncated: int
    """Responses that were too long for max_response_tokens and so have no EOS."""
    num_merged: int
    """Responses tokenised by themselves, because a joint token would span cue and response."""
    fingerprint: str
    """Hash of the ids, their cuts and the prompt lengths."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def example(self, index: int) -> tuple[TokenIds, int]:
        """The ids of one example, int32 [tokens], a read-only view, and how many of them are the prompt.

        Raises IndexError outside 0 <= index < n.
        """
        return _item(self.token_ids, self.offsets, index), int(self.prompt_lengths[index])


def build_prompt_set(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", template: Template, max_prompt_tokens: int
) -> PromptSet:
    """The prompts of the examples, in their order. Raises InputError as `encode_prompts` does."""
    prompts = encode_prompts(examples, tokenizer, template, max_prompt_tokens=max_prompt_tokens)
    token_ids, offsets = lay_end_to_end([prompt.token_ids for prompt in prompts])
    return PromptSet(
        token_ids=token_ids,
        offsets=offsets,
        references=tuple(example.references for example in examples),
        texts=tuple(prompt.text for prompt in prompts),
        num_cut=sum(prompt.cut for prompt in prompts),
        fingerprint=fingerprint(token_ids, offsets),
    )


def build_supervised_set(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> SupervisedSet:
    """Prompt, response and EOS of the examples, in their order. Raises InputError as `encode_all_supervised` does."""
    encoded = encode_all_supervised(
        examples,
        tokenizer,
        template,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
    )
    token_ids, offsets = lay_end_to_end([one.token_ids for one in encoded])
    prompt_lengths = _read_only(np.asarray([one.prompt_length for one in encoded], dtype=np.int32))
    return SupervisedSet(
        token_ids=token_ids,
        offsets=offsets,
        prompt_lengths=prompt_lengths,
        num_cut=sum(one.cut for one in encoded),
        num_truncated=sum(one.truncated for one in encoded),
        num_merged=sum(one.merged for one in encoded),
        fingerprint=fingerprint(token_ids, offsets, prompt_lengths),
    )


def pair_prompts(prompts: PromptSet, responses: Sequence[tuple[TokenIds, bool]]) -> SupervisedSet:
    """The first prompts, each with a response that is tokenised already: its ids and whether it was truncated.

    responses: in the order of the prompts, at most as many.
    """
    kept = [prompts.prompt(index) for index in range(len(responses))]
    token_ids, offsets = lay_end_to_end(
        [np.concatenate([prompt, ids]) for prompt, (ids, _) in zip(kept, responses, strict=True)]
    )
    prompt_lengths = _read_only(np.asarray([len(prompt) for prompt in kept], dtype=np.int32))
    return SupervisedSet(
        token_ids=token_ids,
        offsets=offsets,
        prompt_lengths=prompt_lengths,
        num_cut=prompts.num_cut,
        num_truncated=sum(truncated for _, truncated in responses),
        num_merged=0,
        fingerprint=fingerprint(token_ids, offsets, prompt_lengths),
    )


def lay_end_to_end(items: Sequence[TokenIds]) -> tuple[TokenIds, Offsets]:
    """(int32 [total tokens], int64 [items + 1]), both read-only: the items in one array, and where each begins."""
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum(np.asarray([len(item) for item in items], dtype=np.int64), out=offsets[1:])
    token_ids = np.concatenate([np.zeros(0, dtype=np.int32), *items]).astype(np.int32)
    return _read_only(token_ids), _read_only(offsets)


def fingerprint(*arrays: npt.NDArray[np.integer]) -> str:
    """32 hexadecimal digits that depend on the numbers and lengths alone, not on the machine's byte order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape};".encode())
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def _item(token_ids: TokenIds, offsets: Offsets, index: int) -> TokenIds:
    if not 0 <= index < len(offsets) - 1:
        raise IndexError(f"item {index} of a set of {len(offsets) - 1}")
    return token_ids[offsets[index] : offsets[index + 1]]


def _read_only(array: npt.NDArray) -> npt.NDArray:
    array.flags.writeable = False
    return array
