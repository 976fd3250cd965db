"""The numbers of one optimizer step, as sums and counts that ranks combine exactly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm_ray.learner.micro_batches import MicroBatch
from minillm_ray.objective import MiniLLMResult
from minillm_ray.telemetry.reductions import Max, Mean, Reduction, Sum, combine

_DECILES = 10


def micro_batch_metrics(batch: MicroBatch, result: MiniLLMResult, sampler_logprob: Tensor) -> dict[str, Reduction]:
    """Statistics of one micro-batch of N trained tokens. sampler_logprob float [N], nats, as the engine reported it."""
    num_tokens = float(len(batch.tokens))
    mismatch = (result.student_logprob - sampler_logprob).abs()
    numbers = torch.stack(
        [
            result.kl.sum(),
            result.entropy.sum(),
            result.ratio.sum(),
            result.ratio.max(),
            result.weight.sum(),
            result.clipped.sum(),
            mismatch.sum(),
            mismatch.max(),
            result.loss_single_step,
            result.loss_long_term,
        ]
        # One transfer from the device for all of them.
    ).tolist()
    kl, entropy, ratio, ratio_max, weight, clipped, mismatch_sum, mismatch_max, single_step, long_term = numbers
    total_weight = result.weight * result.ratio
    statistics: dict[str, Reduction] = {
        "objective/kl_nats_per_token/mean": Mean(kl, num_tokens),
        "objective/entropy_nats_per_token/mean": Mean(entropy, num_tokens),
        "objective/ratio/mean": Mean(ratio, num_tokens),
        "objective/ratio/max": Max(ratio_max),
        "objective/weight/mean": Mean(weight, num_tokens),
        "objective/clip_fraction/mean": Mean(clipped, num_tokens),
        "objective/loss/single_step": Sum(single_step),
        "objective/loss/long_term": Sum(long_term),
        "objective/loss/total": Sum(single_step + long_term),
        "learner/sampler_mismatch_nats/mean": Mean(mismatch_sum, num_tokens),
        "learner/sampler_mismatch_nats/max": Max(mismatch_max),
        "_weight": Mean(float(total_weight.sum()), num_tokens),
        "_squared_weight": Mean(float(total_weight.square().sum()), num_tokens),
    }
    return statistics | _agreement(result) | _deciles(batch, result.kl)


def combine_step(parts: Sequence[dict[str, Reduction]]) -> dict[str, Reduction]:
    """The statistics of a step from those of its micro-batches and ranks; the order does not matter."""
    return combine(parts)


def finish_step(statistics: dict[str, Reduction]) -> dict[str, float]:
    """Plain numbers under their declared names, once every rank's part is in."""
    numbers = {name: part.value for name, part in statistics.items() if not name.startswith("_")}
    weight, squared = statistics.get("_weight"), statistics.get("_squared_weight")
    if isinstance(weight, Mean) and isinstance(squared, Mean) and squared.sum > 0:
        fraction = weight.sum**2 / (weight.count * squared.sum)
        numbers["objective/effective_sample_size_fraction/mean"] = fraction
    return numbers


def _agreement(result: MiniLLMResult) -> dict[str, Reduction]:
    """How far the teacher's top k covers both models; nothing where whole distributions were compared."""
    if result.agreement is None:
        return {}
    sums = torch.stack([each.sum() for each in vars(result.agreement).values()]).tolist()
    num_tokens = float(len(result.kl))
    return {
        f"objective/topk_{name}/mean": Mean(total, num_tokens)
        for name, total in zip(vars(result.agreement), sums, strict=True)
    }


def _deciles(batch: MicroBatch, kl: Tensor) -> dict[str, Reduction]:
    """Mean divergence by tenth of the response: token t of n is in tenth floor(10 t / n)."""
    starts = batch.cu_seqlens[:-1].long()
    lengths = batch.cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=kl.device), lengths)
    place = torch.arange(len(kl), device=kl.device) - starts[sequence]
    tenth = place * _DECILES // lengths[sequence]
    sums = torch.zeros(_DECILES, dtype=kl.dtype, device=kl.device).index_add_(0, tenth, kl).tolist()
    counts = torch.bincount(tenth, minlength=_DECILES).tolist()
    return {
        f"objective/kl_nats_per_token/decile_{k}": Mean(sums[k], float(counts[k])) for k in range(_DECILES) if counts[k]
    }
