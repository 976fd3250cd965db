"""Weights for an engine that spans several processes: a file that all of them read, gone once they have.

    engine's process --> file in memory --> each worker process reads what it needs of every tensor

An iterator of tensors does not leave its process, and a message would hold all weights once for each worker.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MEMORY = Path("/dev/shm")
"""Linux's folder in memory. A container may have a small one."""


@contextmanager
def written(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Path]:
    """The file, in memory where there is room for it, elsewhere in the folder for temporary files."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in named_tensors:
        # The format has no two names for one tensor, as tied weights may have.
        tensors[name] = tensor.clone() if tensor.data_ptr() in places else tensor.contiguous()
        places.add(tensor.data_ptr())
    size = sum(tensor.nbytes for tensor in tensors.values())
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > size
    with tempfile.TemporaryDirectory(prefix="minillm-weights-", dir=MEMORY if fits else None) as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(tensors, file)
        yield file


def load(worker: Any, file: str) -> None:
    """Have a worker of vLLM take its weights from the file. For `collective_rpc`."""
    with safe_open(file, framework="pt") as weights:
        worker.reload_weights(weights_iterator=((name, weights.get_tensor(name)) for name in weights.keys()))  # noqa: SIM118
