"""How new weights leave the learner, whatever carries them.

    learner rank: publish(tensors) -> buffers, then what was published -> replica: pull

What was published says by its type how a replica takes it: a WeightManifest (weights/buffers.py) comes with buffers, a
WeightOffer (weights/nccl.py) names whom to ask.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from minillm_ray.weights.buffers import WeightManifest
from minillm_ray.weights.nccl import WeightOffer

Transport: TypeAlias = Literal["object_store", "nccl"]
Published: TypeAlias = WeightManifest | WeightOffer


class Publisher(Protocol):
    """Rank 0's part. The other ranks iterate over the same tensors, since gathering them is a collective."""

    @property
    def num_buffers(self) -> int:
        """Of every version."""

    def publish(self, tensors: Iterable[tuple[str, Tensor]], *, version: int) -> Iterator[Any]:
        """num_buffers buffers, each to be stored before the next is asked for, and last what was published."""
