"""vLLM's own RMS normalisation in C, named so that an engine on CPUs may choose it (`ir_op_priority`).

vLLM has these kernels for CPUs too and offers them on GPUs alone. A CPU takes PyTorch's operators in their place, six
or seven for each normalisation: a tenth of a decoding step, and of a teacher's pass.
"""

import torch
from torch import Tensor
from vllm import ir

PROVIDER = "minillm_ray_cpu"
OPERATORS = ("rms_norm", "fused_add_rms_norm")


def _takes(x: Tensor, weight: Tensor | None, variance_size: int | None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _takes_one(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return _takes(x, weight, variance_size)


def _takes_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _takes(x, weight, variance_size) and x_residual.dtype == x.dtype and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes_one)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """As vLLM's operator of this name: x [..., d] over its root mean square, times weight [d]."""
    normalized = torch.empty_like(x)
    torch.ops._C.rms_norm(normalized, x, weight, epsilon)
    return normalized


@ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same of x + x_residual, in place: x becomes the normalised sum, x_residual the sum."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
