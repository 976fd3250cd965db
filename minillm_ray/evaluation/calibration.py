"""Does a model know how often it is right: the most probable token against the reference's, and the gap in between."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minillm_ray.objective import Head
from minillm_ray.objective.products import HeadProducts
from minillm_ray.objective.settings import DEFAULT
from minillm_ray.objective.workspace import Workspace, pick

NUM_BINS = 10


def expected_calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = NUM_BINS) -> float:
    """sum_b N_b / N |accuracy_b - confidence_b| over equal-width bins (k/M, (k+1)/M] of confidence; 0 is in the first.

    For a language model: the probability of the most probable token at each position of a reference response, and
    whether the reference has that token (`predict`). For classification by label words, as in MiniLLM
    (arXiv 2306.08543): the probability of the chosen word, renormalised over the label words, and whether it is right.

    confidence  float [N], 0..1.    correct  bool [N].

    Returns a float in 0..1; nan for N = 0. Raises ValueError for other shapes or a confidence outside 0..1.
    """
    probability, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if probability.ndim != 1 or probability.shape != hit.shape:
        raise ValueError(f"confidence has shape {probability.shape}, correct {hit.shape}; expected one length [N]")
    if not probability.size:
        return float("nan")
    if not ((probability >= 0.0) & (probability <= 1.0)).all():
        raise ValueError("a confidence lies outside 0..1; expected probabilities")
    bins = np.digitize(probability, np.linspace(0.0, 1.0, num_bins + 1)[1:-1], right=True)
    # N_b |accuracy_b - confidence_b| is |hits in the bin - summed confidence in the bin|.
    gap = np.bincount(bins, hit - probability, minlength=num_bins)
    return float(np.abs(gap).sum() / probability.size)


@dataclass(frozen=True)
class Prediction:
    """What a model makes of given tokens. nll float [N], nats: -log q(y); confidence float [N]: max_v q(v);
    correct bool [N]: y is that v."""

    nll: Tensor
    confidence: Tensor
    correct: Tensor


@torch.no_grad()
def predict(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    logits_memory_mb: int = DEFAULT["logits_memory_mb"],
) -> Prediction:
    """The model's prediction of each token, from its final hidden states; never an [N, V] tensor for large N.

    hidden  float [N, d] at the positions that predict `tokens`, int64 [N]. head: its vocab_size leaves padding out.
    """
    vocab_size = head.weight.shape[0] if head.vocab_size is None else head.vocab_size
    products = HeadProducts(hidden, head, vocab_size=vocab_size, temperature=temperature, dtype=torch.float32)
    space = Workspace(products, None, tokens, dtype=torch.float32, memory_mb=logits_memory_mb)
    logprob, confidence = space.vector(), space.vector()
    correct = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for start, end in space.chunks(with_teacher=False):
        for tile in space.tiles(start, end):
            space.log_softmax_(tile, with_teacher=False)
            pick(tile.student, tile.tokens, out=logprob[tile.rows])
            best = tile.student.max(dim=-1)
            confidence[tile.rows] = best.values.exp()
            correct[tile.rows] = best.indices == tile.tokens
    return Prediction(-logprob, confidence, correct)
