"""What may come in. Every refusal is a ValueError that names the argument, the place and the remedy.

All content checks (ids, finite values) are one reduction each and one transfer to the host together.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minillm_ray.objective.head import Head

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def common_vocabulary(student: Head, teacher: Head | None) -> int:
    """V: the ids both softmaxes run over. The two models must share token ids up to there."""
    heads = [("student_head", student)] + ([("teacher_head", teacher)] if teacher is not None else [])
    given = {name: head.vocab_size for name, head in heads if head.vocab_size is not None}
    rows = {name: head.weight.shape[0] for name, head in heads}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"vocab_size differs: {_listing(given)}; the models must share one tokenizer, give its size to both"
        )
    if not given and len(set(rows.values())) > 1:
        raise ValueError(
            f"the heads have {_listing(rows)} rows; if the longer is padding, "
            "pass Head(weight, vocab_size=<size of the tokenizer>)"
        )
    vocab_size = next(iter((given or rows).values()))
    for name, count in rows.items():
        if not 1 <= vocab_size <= count:
            raise ValueError(f"vocab_size is {vocab_size} but {name} has {count} rows; give the size of the tokenizer")
    return vocab_size


def check_model(side: str, hidden: Tensor, head: Head, *, num_tokens: int) -> None:
    """Shapes, dtypes and device of one model's hidden states and head. `side` is "student" or "teacher"."""
    if hidden.dim() != 2 or hidden.shape[0] != num_tokens:
        raise ValueError(
            f"{side}_hidden has shape {list(hidden.shape)}; expected [{num_tokens}, d], "
            "one row for each entry of tokens: the state that predicts it"
        )
    if head.weight.dim() != 2 or head.weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"{side}_head has shape {list(head.weight.shape)}; expected [V, {hidden.shape[1]}] for {side}_hidden "
            f"{list(hidden.shape)}"
        )
    tensors = {f"{side}_hidden": hidden, f"{side}_head": head.weight}
    if head.bias is not None:
        if head.bias.shape != head.weight.shape[:1]:
            raise ValueError(f"{side}_head.bias has shape {list(head.bias.shape)}; expected [{head.weight.shape[0]}]")
        tensors[f"{side}_head.bias"] = head.bias
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected float32, bfloat16, float16 or float64")
        if tensor.dtype != hidden.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, {side}_hidden has {hidden.dtype}; cast one to the other"
            )


def check_ids(name: str, ids: Tensor) -> None:
    """One dimension of int64 (or int32, as cu_seqlens often are)."""
    if ids.dim() != 1 or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} has shape {list(ids.shape)} and dtype {ids.dtype}; expected one dimension of int64")


def check_tokens(tokens: Tensor, cu_seqlens: Tensor) -> list[int]:
    """tokens int [N]; cu_seqlens int [B+1] rising from 0 to N, every sequence with at least one token.

    Returns cu_seqlens on the host.
    """
    check_ids("tokens", tokens)
    check_ids("cu_seqlens", cu_seqlens)
    bounds = cu_seqlens.tolist()
    if not bounds or bounds[0] != 0:
        raise ValueError(f"cu_seqlens starts with {bounds[:1]}; expected [0, end of sequence 0, ..., {tokens.numel()}]")
    for i, (start, end) in enumerate(pairwise(bounds)):
        if end <= start:
            raise ValueError(
                f"cu_seqlens[{i + 1}] is {end}, not above cu_seqlens[{i}] = {start}; "
                "leave out a sequence without trained tokens"
            )
    if bounds[-1] != tokens.numel():
        raise ValueError(
            f"cu_seqlens ends at {bounds[-1]} but tokens has {tokens.numel()} entries; "
            "it must be the running sum of the response lengths"
        )
    return bounds


def check_horizon(bounds: list[int], horizon: int | None) -> None:
    """No response may be longer than the slots that whitening and the return normaliser count."""
    for index, (start, end) in enumerate(pairwise(bounds)):
        if horizon is not None and end - start > horizon:
            raise ValueError(
                f"cu_seqlens gives sequence {index} {end - start} tokens, objective.horizon is {horizon}; "
                "set the horizon to the largest number of new tokens"
            )


def check_log_prob(name: str, values: Tensor | None, *, num_tokens: int) -> None:
    """Shape and dtype of a recorded log-probability, float [N] or None."""
    if values is None:
        return
    if values.shape != (num_tokens,) or not values.is_floating_point():
        raise ValueError(
            f"{name} has shape {list(values.shape)} and dtype {values.dtype}; "
            f"expected float [{num_tokens}], one log-probability for each entry of tokens, or None"
        )


def check_device(device: torch.device, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, student_hidden on {device}; move it there first")


def check_normalizer(normalizer: float | None, expected: str) -> None:
    if normalizer is not None and not normalizer > 0:
        raise ValueError(f"normalizer is {normalizer}; expected {expected}, above 0")


def check_content(tokens: Tensor, vocab_size: int, finite: Sequence[tuple[str, Tensor | None, str]]) -> None:
    """Ids inside the vocabulary and finite numbers. `finite` holds (name, tensor, remedy) of each float input."""
    if tokens.numel() == 0:
        return
    present = [(name, tensor, remedy) for name, tensor, remedy in finite if tensor is not None]
    good = [((tokens >= 0) & (tokens < vocab_size)).all(), *(_all_finite(tensor) for _, tensor, _ in present)]
    ids_good, *values_good = torch.stack(good).tolist()
    if not ids_good:
        index = int(((tokens < 0) | (tokens >= vocab_size)).nonzero()[0])
        raise ValueError(
            f"tokens[{index}] is {int(tokens[index])}, outside the vocabulary of {vocab_size}; "
            "mask padding away before packing, and check that student and teacher share the tokenizer"
        )
    for (name, tensor, remedy), is_good in zip(present, values_good, strict=True):
        if not is_good:
            place = [int(i) for i in (~tensor.isfinite()).nonzero()[0]]
            raise ValueError(f"{name}[{', '.join(map(str, place))}] is {float(tensor[tuple(place)])}; {remedy}")


def _all_finite(tensor: Tensor) -> Tensor:
    low, high = torch.aminmax(tensor.detach())  # NaN reaches both; no copy of the tensor is made
    return torch.isfinite(low) & torch.isfinite(high)


def _listing(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
