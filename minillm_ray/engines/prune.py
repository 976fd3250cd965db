"""A student cut from its teacher: some of its decoder layers, everything else as it is.

The student is built new from the cut configuration and the kept weights are copied into it, so that whatever an
architecture derives from a layer's position (its cache slot, its kind of attention) is derived again and not left over.
No architecture is named here: the layers are the one list of modules as long as the configuration says.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_ray.config.errors import InputError
from minillm_ray.engines.model_folder import (
    load_config,
    no_progress_bars,
    require_model_folder,
    require_new_folder,
    save_model_folder,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# Lists in a configuration that are not one entry a layer, whatever their length.
_NOT_PER_LAYER = {"architectures", "eos_token_id", "bos_token_id", "pad_token_id"}

logger = logging.getLogger(__name__)


def prune_layers(
    teacher: str | Path, out: Path, keep_layers: int, report: Callable[[str], None] = logger.info
) -> list[int]:
    """Write `teacher` with only `keep_layers` of its layers to the new folder `out`. Returns the kept layers' indices.

    keep_layers  2 <= keep_layers <= the teacher's; evenly spaced, the first and the last among them.
    report       Gets one short line a stage.

    The weights keep their dtype and the tokenizer its files. Raises InputError for a number of layers out of range, a
    model that is not there or whose layers cannot be found, or an `out` that exists and is not empty.
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_new_folder(out)
    source = require_model_folder(teacher, role="TEACHER")
    config = load_config(source)
    num_layers = config.get_text_config().num_hidden_layers
    if not 2 <= keep_layers <= num_layers:
        raise InputError(
            f"--keep-layers {keep_layers}: {teacher} has {num_layers} layers; expected 2 to {num_layers}, since the "
            f"first and the last are always kept"
        )
    kept = evenly_spaced(num_layers, keep_layers)
    report(f"reading {source}")
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    layers = find_layers(model, num_layers)
    with torch.random.fork_rng(devices=[]):
        student = AutoModelForCausalLM.from_config(cut_config(model.config, kept), dtype=model.dtype)
    student.load_state_dict(_kept_weights(model.state_dict(), layers, kept))
    student.generation_config = model.generation_config
    report(f"writing {student.num_parameters():,} of {model.num_parameters():,} parameters to {out}: layers {kept}")
    save_model_folder(student, source, out)
    return kept


def evenly_spaced(num_layers: int, keep: int) -> list[int]:
    """`keep` increasing indices out of range(num_layers), the first and the last among them, gaps equal to within 1.

    Raises ValueError unless 2 <= keep <= num_layers.
    """
    if not 2 <= keep <= num_layers:
        raise ValueError(f"keep is {keep}; expected 2 <= keep <= {num_layers}")
    return [(i * (num_layers - 1) + (keep - 1) // 2) // (keep - 1) for i in range(keep)]


def find_layers(model: "PreTrainedModel", num_layers: int) -> str:
    """Name of the one outermost list of `num_layers` modules in `model`. Raises InputError if there is not just one."""
    import torch

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    ]
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(outermost) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(outermost)} lists of {num_layers} modules ({', '.join(outermost)}); "
            f"expected one, its decoder layers. A model of this architecture cannot be pruned; take a smaller one of "
            f"its family as the student."
        )
    return outermost[0]


def cut_config(config: "PretrainedConfig", kept: Sequence[int]) -> "PretrainedConfig":
    """A copy of `config` for the layers `kept`: their number, and every list with one entry a layer, cut to them."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    num_layers = text.num_hidden_layers
    values = text.to_dict()
    for key, value in values.items():
        if isinstance(value, list | tuple) and len(value) == num_layers and key not in _NOT_PER_LAYER:
            setattr(text, key, [value[layer] for layer in kept])
    text.num_hidden_layers = len(kept)
    return config


def _kept_weights(state: "dict[str, torch.Tensor]", layers: str, kept: Sequence[int]) -> "dict[str, torch.Tensor]":
    """The tensors outside `layers` as they are, and those of the kept layers under their new numbers."""
    number = {str(old): new for new, old in enumerate(kept)}
    weights = {}
    for name, tensor in state.items():
        if not name.startswith(f"{layers}."):
            weights[name] = tensor
            continue
        layer, _, rest = name.removeprefix(f"{layers}.").partition(".")
        if layer in number:
            weights[f"{layers}.{number[layer]}.{rest}"] = tensor
    return weights
