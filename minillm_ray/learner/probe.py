"""How much of the long-term gradient is signal: a measurement on a few sequences, apart from the step.

For each sequence the gradient of its long-term loss in one shared vector is taken: a bias added to the final hidden
states of all its slots. Over B sequences with gradients g_i

    signal-to-noise = |mean g|^2 / (trace of the covariance of g / B)

which is about 1 where the mean cannot be told from noise, and grows with B where it can.
"""

import torch
from torch import Tensor


def signal_to_noise(hidden_gradient: Tensor, cu_seqlens: Tensor) -> float:
    """The ratio above. hidden_gradient float [N, d_s]: d loss / d hidden of B >= 2 packed sequences.

    nan where B is below 2 or every gradient is zero.
    """
    lengths = cu_seqlens.diff().long()
    num_sequences = len(lengths)
    if num_sequences < 2:
        return float("nan")
    owner = torch.repeat_interleave(torch.arange(num_sequences, device=hidden_gradient.device), lengths)
    per_sequence = torch.zeros(
        num_sequences, hidden_gradient.shape[1], dtype=torch.float64, device=hidden_gradient.device
    ).index_add_(0, owner, hidden_gradient.double())
    mean = per_sequence.mean(0)
    variance = (per_sequence - mean).square().sum() / (num_sequences - 1)
    return float(mean.square().sum() / (variance / num_sequences))
