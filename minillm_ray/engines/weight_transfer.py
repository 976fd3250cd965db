"""vLLM's weight transfer over NCCL, as its trainer side drives it. Not yet run on a GPU.

The learner is rank 0 of a group, the workers of one replica (tensor x pipeline parallel) are the others.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

BACKEND = "nccl"
"""vLLM's name of it, also for the engine's side."""


def open_group(
    control: Any, tensors: Mapping[str, Tensor], *, address: str, num_workers: int, buffer_bytes: int
) -> Any:
    """Meet the workers of the replica behind `control` (vLLM's VLLMWeightSyncClient) at `address`, host:port.

    Returns vLLM's trainer engine: `send_weights` sends `tensors` as they then are, by Hugging Face name; `shutdown`
    aborts the group. Blocks until all are there, without a deadline. buffer_bytes: of one of the two buffers that
    tensors are packed in.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    class Kept(WeightSource):
        """The tensors of the mapping, in its order."""

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(tensors.items())

    host, _, port = address.rpartition(":")
    init_info = NCCLTrainerInitInfo(
        master_address=host,
        master_port=int(port),
        world_size=1 + num_workers,
        packed_buffer_size_bytes=buffer_bytes,
        rank=0,
    )
    return NCCLTrainerWeightTransferEngine.trainer_init(init_info, client=control, source=Kept())
