"""The state of every random generator of a process, as plain JSON values: torch, CUDA, numpy's and python's own."""

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Any]:
    """The generators as they stand; none is moved."""
    numpy_state: Any = np.random.get_state(legacy=False)
    version, words, next_gauss = random.getstate()
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()],
        "numpy": numpy_state | {"state": {key: np.asarray(x).tolist() for key, x in numpy_state["state"].items()}},
        "python": [version, list(words), next_gauss],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` returned, on this machine or on one with more or fewer GPUs."""
    torch.set_rng_state(_bytes(state["torch"]))
    for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(saved), device)
    np.random.set_state(state["numpy"])
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
