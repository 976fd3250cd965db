"""Tokenizers, and the one thing MiniLLM asks of two of them: the same ids for the same tokens.

Student and teacher score each other's tokens by id, and their distributions are compared id by id. Not here: the
size of a model's embedding, which may be padded beyond the tokenizer.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder or a Hugging Face id. Raises InputError if there is none or it is broken."""
    from transformers import AutoTokenizer

    folder = Path(path)
    if folder.is_file():
        raise InputError(f"{path} is a file; expected a model folder. Give the folder that holds tokenizer.json")
    if not folder.is_dir() and not _could_be_hub_id(str(path)):
        raise InputError(
            f"{path} does not exist (looked for {folder.absolute()}); expected a model folder with a tokenizer, or a "
            "Hugging Face id. Correct the path"
        )
    try:
        return AutoTokenizer.from_pretrained(str(path))
    # The tokenizer files are read by several libraries, one of them in Rust that raises bare Exception.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"no tokenizer can be loaded from {path} ({type(error).__name__}: {reason}); expected a folder with "
            "tokenizer.json and tokenizer_config.json, or a Hugging Face id that can be reached. Copy the tokenizer "
            "files of the model there, or download the model and give its local path"
        ) from error


def require_same_vocabulary(
    student_tokenizer: "PreTrainedTokenizerBase", teacher_tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Raises InputError, naming the first id that differs, unless both give every token the same id and share EOS."""
    student_tokens = _tokens_by_id(student_tokenizer)
    teacher_tokens = _tokens_by_id(teacher_tokenizer)
    names = (
        f"the student's tokenizer {tokenizer_name(student_tokenizer)} and the teacher's "
        f"{tokenizer_name(teacher_tokenizer)}"
    )
    differing = [
        token_id
        for token_id in student_tokens.keys() | teacher_tokens.keys()
        if student_tokens.get(token_id) != teacher_tokens.get(token_id)
    ]
    if differing:
        first = min(differing)
        raise InputError(
            f"{names} differ first at id {first}: the student has {_name(student_tokens.get(first))}, the teacher "
            f"{_name(teacher_tokens.get(first))} ({len(student_tokens)} and {len(teacher_tokens)} tokens); expected "
            "the same token at every id. Take a student of the teacher's own family, or cut one from the teacher with: "
            "minillm-ray prune TEACHER OUT"
        )
    student_eos, teacher_eos = student_tokenizer.eos_token_id, teacher_tokenizer.eos_token_id
    if student_eos != teacher_eos:
        raise InputError(
            f"{names} share all ids but not EOS: the student ends with {_eos(student_tokenizer)}, the teacher with "
            f"{_eos(teacher_tokenizer)}; expected the same token. Set eos_token in the student's tokenizer_config.json "
            "to the teacher's"
        )


def require_eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that ends a response. Raises InputError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer {tokenizer_name(tokenizer)} has no EOS token; expected one, since it ends every response. "
            "Set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def tokenizer_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Where the tokenizer came from, for a message."""
    return tokenizer.name_or_path or "(made in memory)"


def _tokens_by_id(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    return {token_id: token for token, token_id in sorted(tokenizer.get_vocab().items())}


def _name(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


def _eos(tokenizer: "PreTrainedTokenizerBase") -> str:
    return "nothing" if tokenizer.eos_token_id is None else f"{tokenizer.eos_token!r} (id {tokenizer.eos_token_id})"


def _could_be_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))
