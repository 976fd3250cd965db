"""A model on disk in the Hugging Face layout: is it all there, how big is it, and writing one.

Everything here reads configurations, file names and file headers; weights are loaded by whoever trains or serves them.
"""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.files import folder_beside, replace_folder

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_VOCABULARY_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")
_TOKENIZER_NAMES = (
    *_VOCABULARY_NAMES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class ModelFacts:
    """What a configuration says about a causal language model. Sizes are those of its text part.

    num_parameters           every tensor once, tied ones too; exact for what transformers builds from the configuration
    vocab_size               rows of the embedding, padding rows included
    max_position_embeddings  longest sequence in tokens; None where the architecture has no such limit
    tied                     the head is the embedding
    """

    num_parameters: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    max_position_embeddings: int | None
    architecture: str
    tied: bool


def require_model_folder(path_or_id: str | Path, *, role: str, tokenizer: bool = True) -> str:
    """Check that a model can be loaded, before anything is started. Returns what `from_pretrained` takes.

    path_or_id  A folder with config.json, weights (each safetensors file as long as its header says) and, where
                `tokenizer` is set, a tokenizer; or a Hugging Face id, which is looked up in the local cache only,
                and only when HF_HUB_OFFLINE is set.
    role        Names the setting in the message: "teacher", "student".

    Raises InputError naming the folder, what is missing and the remedy.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        _require_config(folder, role)
        for file in _weight_files(folder, role):
            if file.suffix == ".safetensors":
                require_whole_safetensors(file)
        if tokenizer and not any((folder / name).is_file() for name in _VOCABULARY_NAMES):
            raise InputError(
                f"{role}: {folder} has no tokenizer; expected one of {', '.join(_VOCABULARY_NAMES)}. "
                f"Copy the tokenizer files of the model it was trained from into the folder."
            )
        return str(folder)
    if folder.exists():
        raise InputError(
            f"{role}: {path_or_id} is a file; expected a model folder (config.json, weights, tokenizer) or a Hugging "
            f"Face id. A GGUF file becomes a folder with: minillm-ray convert-gguf {path_or_id} OUT"
        )
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(path_or_id):
        raise InputError(
            f"{role}: {path_or_id} is not there; expected a model folder or a Hugging Face id of the form owner/name. "
            f"Check the path: a relative one starts at the configuration file's folder."
        )
    if _is_offline() and not _is_cached(path_or_id):
        raise InputError(
            f"{role}: {path_or_id} is neither a folder here nor in the Hugging Face cache, and HF_HUB_OFFLINE is set. "
            f"Give the path of a model folder, or unset HF_HUB_OFFLINE to download it."
        )
    return path_or_id


def describe_model(path_or_id: str | Path) -> ModelFacts:
    """The facts of a model, from its configuration alone: no weight is read or allocated.

    Raises InputError where the configuration is missing, broken or not that of a causal language model.
    """
    config = load_config(path_or_id)
    text = config.get_text_config()
    return ModelFacts(
        num_parameters=_count_parameters(config, path_or_id),
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        max_position_embeddings=getattr(text, "max_position_embeddings", None),
        architecture=(config.architectures or [type(config).__name__])[0],
        tied=bool(config.tie_word_embeddings),
    )


def load_config(path_or_id: str | Path) -> "PretrainedConfig":
    """The transformers configuration of a model. Raises InputError where there is none that transformers knows."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path_or_id))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path_or_id}: its configuration cannot be read ({_first_line(error)}); expected the config.json of a "
            f"model that the installed transformers knows. Check the path, or upgrade transformers."
        ) from error


def require_whole_safetensors(file: Path) -> None:
    """Raise InputError unless `file` is as long as its own header says: a cut download or a full disk."""
    size = file.stat().st_size
    remedy = "Copy or download the file again."
    with file.open("rb") as handle:
        prefix = handle.read(8)
        if len(prefix) < 8:
            raise InputError(f"{file}: {size} bytes; expected a safetensors file. {remedy}")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > size - 8:
            raise InputError(f"{file}: {size} bytes, but its header alone needs {8 + header_bytes}. {remedy}")
        try:
            header = json.loads(handle.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{file}: its header is not that of a safetensors file. {remedy}") from None
    expected = 8 + header_bytes + max(ends, default=0)
    if size != expected:
        raise InputError(f"{file}: {size} bytes, but its header says {expected}: the file is not whole. {remedy}")


def save_model_folder(
    model: "PreTrainedModel",
    tokenizer_or_source: "PreTrainedTokenizerBase | str | Path",
    path: Path,
    check: Callable[[Path], None] | None = None,
    weights: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Write model and tokenizer beside `path` and rename the folder into place; an older `path` is replaced.

    tokenizer_or_source  A tokenizer, or the folder or Hugging Face id to take it from. The files of a folder are
                         copied as they are, so that not one id can change.
    check                Called with the folder that was written, before it is renamed; what it raises stops the save.
    weights              Written in place of the model's own tensors: those of a sharded model, gathered.

    Raises OSError (no space) and then leaves `path` as it was. The folder loads in transformers and in vLLM.
    """
    temporary = folder_beside(path)
    try:
        with no_progress_bars():
            model.save_pretrained(temporary, state_dict=None if weights is None else _untied(weights, model))
        mode = (temporary / "config.json").stat().st_mode
        for file in temporary.glob("*.safetensors"):
            file.chmod(mode)  # safetensors makes its files unreadable for everyone else
        _write_tokenizer(tokenizer_or_source, temporary)
        if check:
            check(temporary)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars (loading, writing shards) off the console while the body runs."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def require_new_folder(out: Path) -> None:
    """Raise InputError if `out` exists and is not an empty folder: a command never writes over a model."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; expected a new folder. Name another one, or remove it first.")


def _untied(weights: "Mapping[str, torch.Tensor]", model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """Without the names that the model ties to another: transformers leaves those out of a folder too."""
    return {name: tensor for name, tensor in weights.items() if name not in model.all_tied_weights_keys}


def _write_tokenizer(source: "PreTrainedTokenizerBase | str | Path", folder: Path) -> None:
    from transformers import AutoTokenizer

    if not isinstance(source, str | Path):
        source.save_pretrained(folder)
    elif Path(source).is_dir():
        for name in _TOKENIZER_NAMES:
            if (Path(source) / name).is_file():
                shutil.copyfile(Path(source) / name, folder / name)
    else:
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _require_config(folder: Path, role: str) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(
            f"{role}: {folder} has no config.json; expected a model folder as save_pretrained writes it. "
            f"Check the path, or convert the model first (minillm-ray convert-gguf FILE OUT)."
        )
    _read_json(file)


def _weight_files(folder: Path, role: str) -> list[Path]:
    """The weight files of a model folder; InputError where there are none or a shard of the index is missing."""
    for name in _INDEX_NAMES:
        index = folder / name
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise InputError(f"{index}: no weight_map; expected the index of a sharded model. Copy it again.")
            shards = sorted({folder / str(shard) for shard in weight_map.values()})
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise InputError(
                    f"{role}: {folder} lacks {len(missing)} of the {len(shards)} weight files that {name} names, the "
                    f"first is {missing[0]}. Copy or download the missing files."
                )
            return shards
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    raise InputError(
        f"{role}: {folder} has no weights; expected {', '.join(_WEIGHT_NAMES)} or {_INDEX_NAMES[0]} with its files. "
        f"Copy or download the weights into the folder."
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}). Copy or download the file again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a JSON object. Copy or download the file again.")
    return content


def _count_parameters(config: "PretrainedConfig", path_or_id: str | Path) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise InputError(
            f"{path_or_id}: {_first_line(error)}; expected a causal language model. Distillation needs a teacher and "
            f"a student that predict the next token."
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
