"""A tabular language model small enough to enumerate, and random batches for everything else.

The tabular student and teacher have V = 4 tokens, at most T = 5 slots and logits theta[slot, previous token, token].
All sequences are packed into one batch whose hidden states *are* the logits (the head is the identity), so that the
gradient in the hidden states is every sequence's own logit gradient, and any estimator's mean and covariance are sums.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from minillm_ray.objective import Head, MiniLLMResult, ObjectiveSettings, TermGradients, minillm_loss, term_gradients

V, T = 4, 5
EOS = 0
DOUBLE = torch.float64


def tabular_logits() -> tuple[Tensor, Tensor]:
    """Student and teacher logits, float64 [T * (V + 1), V]; row t * (V + 1) + previous, V standing for the start."""
    rng = np.random.default_rng(0)
    student = rng.standard_normal((T, V + 1, V))
    teacher = 1.5 * rng.standard_normal((T, V + 1, V))
    return torch.from_numpy(student).reshape(-1, V), torch.from_numpy(teacher).reshape(-1, V)


def all_sequences(*, with_eos: bool) -> list[tuple[int, ...]]:
    """Every response of at most T tokens: 4^5 of length 5, or 364 of which some stop at EOS and some are truncated."""
    if not with_eos:
        return list(product(range(V), repeat=T))
    found = []
    for length in range(1, T + 1):
        for sequence in product(range(V), repeat=length):
            ended = EOS in sequence
            if (sequence.index(EOS) == length - 1) if ended else (length == T):
                found.append(sequence)
    return found


@dataclass(frozen=True)
class Moments:
    """Of a gradient estimator over all sequences: mean [T * (V + 1), V] and the trace of its one-sample covariance."""

    mean: Tensor
    trace: float


class Enumeration:
    """All sequences of the tabular model, packed: N tokens, S sequences."""

    def __init__(self, *, with_eos: bool = False) -> None:
        self.student, self.teacher = tabular_logits()
        sequences = all_sequences(with_eos=with_eos)
        self.lengths = torch.tensor([len(s) for s in sequences])
        self.cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
        self.tokens = torch.tensor([token for s in sequences for token in s])
        self.state = torch.tensor([t * (V + 1) + (s[t - 1] if t else V) for s in sequences for t in range(len(s))])
        self.sequence = torch.repeat_interleave(torch.arange(len(sequences)), self.lengths)
        self.position = torch.arange(len(self.tokens)) - self.cu_seqlens[:-1][self.sequence]

    def token_logprob(self, logits: Tensor) -> Tensor:
        """log-probability of each packed token, float [N]."""
        return logits.log_softmax(-1)[self.state, self.tokens]

    def log_mixture(self, alpha: float) -> Tensor:
        """log m of each packed token, m = alpha p + (1 - alpha) q."""
        q, p = self.token_logprob(self.student).exp(), self.token_logprob(self.teacher).exp()
        return (alpha * p + (1 - alpha) * q).log()

    def sequence_sum(self, values: Tensor) -> Tensor:
        """float [S] from float [N]."""
        return torch.zeros(len(self.lengths), dtype=DOUBLE).index_add(0, self.sequence, values)

    def prefix_product(self, values: Tensor, *, inclusive: bool) -> Tensor:
        """Product of values over slots 0..t (inclusive) or 0..t-1 of each sequence, float [N]. A loop, on purpose."""
        out, running = torch.empty_like(values), 1.0
        for i, (t, value) in enumerate(zip(self.position.tolist(), values.tolist(), strict=True)):
            before = running if t else 1.0
            running = before * value
            out[i] = running if inclusive else before
        return out

    def kl(self, student: Tensor) -> Tensor:
        """KL(q || p) between the laws of whole sequences, exactly."""
        log_q = self.sequence_sum(self.token_logprob(student))
        log_p = self.sequence_sum(self.token_logprob(self.teacher))
        return (log_q.exp() * (log_q - log_p)).sum()

    def kl_gradient(self, step: float = 1e-5) -> Tensor:
        """Central differences of `kl` in every logit, float64 [T * (V + 1), V]."""
        gradient = torch.zeros_like(self.student)
        for index in product(range(self.student.shape[0]), range(V)):
            moved = []
            for sign in (1, -1):
                theta = self.student.clone()
                theta[index] += sign * step
                moved.append(self.kl(theta))
            gradient[index] = (moved[0] - moved[1]) / (2 * step)
        return gradient

    def arguments(self, *, recorded_alpha: float | None = None) -> tuple:
        """Positional arguments of the objective up to `settings`; sampled from m if recorded_alpha is given."""
        identity = torch.eye(V, dtype=DOUBLE)
        student, teacher = self.student[self.state], self.teacher[self.state]
        sampler = behavior = None
        if recorded_alpha is not None:
            sampler, behavior = self.token_logprob(self.student), self.log_mixture(recorded_alpha)
        return student, identity, teacher, identity, self.tokens, self.cu_seqlens, sampler, behavior

    def token_gradient(self, settings: ObjectiveSettings, *, recorded_alpha: float | None = None) -> Tensor:
        """Each token's logit gradient, float [N, V], as `minillm_loss` hands it to autograd."""
        hidden, *rest = self.arguments(recorded_alpha=recorded_alpha)
        hidden = hidden.requires_grad_()
        minillm_loss(hidden, *rest, settings, normalizer=1).loss.backward()
        return hidden.grad

    def halves(self, settings: ObjectiveSettings, *, recorded_alpha: float | None = None) -> TermGradients:
        return term_gradients(*self.arguments(recorded_alpha=recorded_alpha), settings, normalizer=1)

    def moments(self, token_gradient: Tensor, log_probability: Tensor) -> Moments:
        """Mean and covariance trace when a sequence's probability is exp of the sum of `log_probability` [N]."""
        weight = self.sequence_sum(log_probability).exp()
        torch.testing.assert_close(weight.sum(), torch.ones((), dtype=DOUBLE))
        mean = torch.zeros_like(self.student).index_add(
            0, self.state, weight[self.sequence].unsqueeze(1) * token_gradient
        )
        # A sequence is in a state at most once, so the squared norm of its gradient is the sum over its tokens.
        second = (weight * self.sequence_sum(token_gradient.square().sum(1))).sum()
        return Moments(mean, float(second - mean.square().sum()))


@dataclass(frozen=True)
class RandomBatch:
    """Packed tokens with student, teacher and recorded log-probs, all random."""

    student_hidden: Tensor
    student_head: Head
    teacher_hidden: Tensor
    teacher_head: Head
    tokens: Tensor
    cu_seqlens: Tensor
    sampler_logprob: Tensor | None
    behavior_logprob: Tensor | None

    @property
    def arguments(self) -> tuple:
        return (
            self.student_hidden,
            self.student_head,
            self.teacher_hidden,
            self.teacher_head,
            self.tokens,
            self.cu_seqlens,
            self.sampler_logprob,
            self.behavior_logprob,
        )


def random_batch(
    lengths: tuple[int, ...] = (1, 7, 3, 12),
    *,
    vocab_size: int = 11,
    padding_rows: tuple[int, int] = (0, 0),
    bias: bool = False,
    scale: float | None = None,
    soft_cap: float | None = None,
    recorded: tuple[bool, bool] = (True, True),
    seed: int = 0,
    dtype: torch.dtype = DOUBLE,
) -> RandomBatch:
    """Log-probs recorded near the student's own, so that ratios are on both sides of 1 and of the clip."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    num_tokens, d_s, d_t = sum(lengths), 5, 6
    hidden, weight = normal(num_tokens, d_s), normal(vocab_size + padding_rows[0], d_s)
    teacher_hidden, teacher_weight = normal(num_tokens, d_t), normal(vocab_size + padding_rows[1], d_t)
    tokens = torch.randint(vocab_size, (num_tokens,), generator=generator)
    size = vocab_size if any(padding_rows) else None
    head = Head(weight.to(dtype), normal(len(weight)).to(dtype) if bias else None, scale, soft_cap, size)
    log_q = (hidden @ weight[:vocab_size].t()).log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    sampler = log_q + 0.4 * normal(num_tokens)
    behavior = sampler + 0.4 * normal(num_tokens)
    return RandomBatch(
        hidden.to(dtype),
        head,
        teacher_hidden.to(dtype),
        Head(teacher_weight.to(dtype)),
        tokens,
        torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        sampler.to(dtype) if recorded[0] else None,
        behavior.to(dtype) if recorded[1] else None,
    )


def differentiate(function, batch: RandomBatch, settings: ObjectiveSettings, **options) -> tuple[MiniLLMResult, dict]:
    """The result, and the gradient of its loss in the hidden states and the head's tensors."""
    hidden, head, *rest = batch.arguments
    leaves = {"hidden": hidden.clone(), "weight": head.weight.clone()}
    if head.bias is not None:
        leaves["bias"] = head.bias.clone()
    for leaf in leaves.values():
        leaf.requires_grad_()
    copy = Head(leaves["weight"], leaves.get("bias"), head.scale, head.soft_cap, head.vocab_size)
    result = function(leaves["hidden"], copy, *rest, settings, **options)
    result.loss.backward()
    return result, {name: leaf.grad for name, leaf in leaves.items()}
