"""Plain text for the language-modelling term.

    one document a line -> ids + EOS -> laid end to end -> contiguous chunks

No overlap, and no mask between the documents of one chunk: the EOS between them is attended like any token.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minillm_ray.config.errors import InputError
from minillm_ray.data.encoding import TokenIds, encode_texts
from minillm_ray.data.rows import require_file, utf8_lines
from minillm_ray.data.sets import Offsets, fingerprint, lay_end_to_end
from minillm_ray.data.vocabulary import require_eos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Documents tokenised together: enough for the tokenizer's threads, little enough memory for any corpus.
_DOCUMENTS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class TextChunks:
    """n chunks of text laid end to end. Frozen, picklable, its arrays read-only."""

    token_ids: TokenIds
    """int32 [total tokens]."""
    offsets: Offsets
    """int64 [n + 1]; chunk i is token_ids[offsets[i]:offsets[i + 1]]."""
    num_documents: int
    """Lines that were not blank."""
    fingerprint: str
    """Hash of the ids and their cuts."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def chunk(self, index: int) -> TokenIds:
        """The ids of one chunk, int32 [2 .. chunk_tokens], a read-only view. IndexError outside 0 <= index < n."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]


def read_chunks(path: str | Path, tokenizer: "PreTrainedTokenizerBase", *, chunk_tokens: int) -> TextChunks:
    """The text of a file in contiguous chunks of chunk_tokens tokens.

    path          UTF-8 text, one document a line; blank lines are skipped.
    chunk_tokens  Tokens of a chunk, at least 2: a chunk trains every token but its first. The last chunk has what is
                  left; a single token left over, which would train nothing, is dropped.

    Raises InputError if the file is missing, is not UTF-8 (naming the line), or has fewer than 2 tokens, if
    chunk_tokens is below 2, or if the tokenizer has no EOS.
    """
    if chunk_tokens < 2:
        raise InputError(
            f"chunk_tokens is {chunk_tokens}; expected at least 2, since a chunk trains every token but its first. "
            "Raise chunk_tokens"
        )
    path = Path(path)
    require_file(path, expected="a UTF-8 text file, one document a line")
    documents = _documents(path, tokenizer)
    token_ids = np.concatenate([np.zeros(0, dtype=np.int32), *documents])
    if len(token_ids) < 2:
        raise InputError(
            f"{path} has {len(token_ids)} tokens; expected at least 2, one document a line. Check that the file is "
            "not empty"
        )
    chunks = [token_ids[start : start + chunk_tokens] for start in range(0, len(token_ids), chunk_tokens)]
    if len(chunks[-1]) < 2:
        chunks.pop()
    token_ids, offsets = lay_end_to_end(chunks)
    return TextChunks(
        token_ids=token_ids,
        offsets=offsets,
        num_documents=len(documents),
        fingerprint=fingerprint(token_ids, offsets),
    )


def _documents(path: Path, tokenizer: "PreTrainedTokenizerBase") -> list[TokenIds]:
    """The ids of each document with its EOS, int32 [tokens + 1]."""
    eos = np.asarray([require_eos(tokenizer)], dtype=np.int32)
    texts = (text for _, text in utf8_lines(path) if text.strip())
    documents: list[TokenIds] = []
    while several := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        documents += [np.concatenate([token_ids, eos]) for token_ids in encode_texts(tokenizer, several)]
    return documents
