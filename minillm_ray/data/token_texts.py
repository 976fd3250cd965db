"""The text of a response cut into what each token adds to it, for people; nothing is ever encoded from it again."""

from collections.abc import Callable, Sequence

_PART_OF_A_CHARACTER = "\ufffd"
_MOST_TOKENS_OF_A_CHARACTER = 4  # UTF-8 has at most four bytes a character; more are no text at all


def token_texts(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the decoded text, str [T].

    A token alone does not tell: sentencepiece drops the space of a first word, and a character may be spread over
    several tokens, which all but the last then show as "". So a token is decoded behind the ones before it, back to the
    start of the token before.
    """
    texts: list[str] = []
    before, start = 0, 0
    for end in range(1, len(token_ids) + 1):
        known = decode(token_ids[before:start]) if start else ""
        text = decode(token_ids[before:end])
        is_part = text.endswith(_PART_OF_A_CHARACTER) and end - start < _MOST_TOKENS_OF_A_CHARACTER
        if is_part and end < len(token_ids):
            texts.append("")
            continue
        texts.append(text[len(known) :])
        before, start = start, end
    return texts
