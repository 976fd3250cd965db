"""What a sampler of the mixture must give, by enumeration, and the statistics that tell whether it did."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scripted.lock_step import sampled_distribution
from scripted.models import tiny
from scripted.tiny_engines import Sampling

EOS = 0
Response = tuple[int, ...]
Probabilities = npt.NDArray[np.float64]


def sharp(*, seed: int, vocabulary: int = 6) -> Any:
    """A tiny random Llama whose distributions differ much from one state, and from one seed, to the next."""
    model = tiny("llama", seed=seed, vocab_size=vocabulary).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    return model


@dataclass(frozen=True)
class State:
    """Where a token is drawn. p, q [V]: what is sampled; whole [V]: the student's without truncation."""

    p: Probabilities
    q: Probabilities
    whole: Probabilities


class Law:
    """The distribution of responses of at most `limit` tokens to one prompt."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        prompt: Sequence[int],
        *,
        alpha: float,
        limit: int,
        sampling: Sampling | None = None,
    ) -> None:
        self._models = student, teacher
        self._prompt = list(prompt)
        self._sampling = sampling or Sampling()
        self.alpha = alpha
        self.limit = limit
        self._states: dict[Response, State] = {}

    def state(self, response: Sequence[int]) -> State:
        """The state after the tokens of a response so far."""
        key = tuple(response)
        if key not in self._states:
            ids, sampling = torch.tensor([[*self._prompt, *key]]), self._sampling
            with torch.no_grad():
                q_logits, p_logits = (model(ids).logits[:, -1] for model in self._models)
            q, p = (
                sampled_distribution(
                    logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
                )[0].numpy()
                for logits in (q_logits, p_logits)
            )
            whole = sampled_distribution(q_logits, temperature=sampling.temperature)[0].numpy()
            self._states[key] = State(p, q, whole)
        return self._states[key]

    def mixture(self, response: Sequence[int]) -> Probabilities:
        state = self.state(response)
        return self.alpha * state.p + (1.0 - self.alpha) * state.q

    def responses(self, depth: int) -> dict[Response, float]:
        """Probability of every start of `depth` tokens, and of what ends before."""
        return dict(self._extend((), 1.0, depth))

    def _extend(self, response: Response, probability: float, depth: int) -> Iterator[tuple[Response, float]]:
        if len(response) == depth or response[-1:] == (EOS,):
            yield response, probability
            return
        for token, share in enumerate(self.mixture(response)):
            yield from self._extend((*response, token), probability * share, depth)

    def starts(self) -> dict[Response, float]:
        """Every start at which a token is drawn, with the probability that a response comes by it."""
        return {
            start: probability
            for depth in range(self.limit)
            for start, probability in self.responses(depth).items()
            if len(start) == depth and start[-1:] != (EOS,)
        }

    def total_variation(self) -> tuple[float, float]:
        """Expected over a response: the sum of TV(p, q) over its tokens, and their number."""
        starts = self.starts()
        distance = {start: abs(self.state(start).p - self.state(start).q).sum() / 2 for start in starts}
        return sum(starts[start] * distance[start] for start in starts), sum(starts.values())

    def score(self, start: Response) -> Probabilities:
        """d log m / d alpha of each token [V], centred under m; 0 where m is 0."""
        state, m = self.state(start), self.mixture(start)
        raw = np.divide(state.p - state.q, m, out=np.zeros_like(m), where=m > 0)
        return raw - (m * raw).sum()

    def score_deviation(self, responses: Iterable[Response]) -> float:
        """The score summed over all tokens of all responses, in standard deviations: near N(0, 1) if m drew them."""
        total, variance = 0.0, 0.0
        for response, count in Counter(responses).items():
            for t, token in enumerate(response):
                score, m = self.score(response[:t]), self.mixture(response[:t])
                total += count * score[token]
                variance += count * (m * score**2).sum()
        return total / sqrt(variance)

    def power(self, other: "Law", num_responses: int) -> float:
        """What `score_deviation` is expected to be, about, where `other` drew the responses."""
        starts = other.starts()
        drift = sum(chance * (other.mixture(start) * self.score(start)).sum() for start, chance in starts.items())
        information = sum(
            chance * (self.mixture(start) * self.score(start) ** 2).sum() for start, chance in starts.items()
        )
        return sqrt(num_responses) * drift / sqrt(information)


def chi_square_p_value(observed: Counter[Any], expected: dict[Any, float]) -> float:
    """Of counts against probabilities. Cells with less than five expected are one; a cell of none must be empty."""
    num = observed.total()
    if any(expected.get(cell, 0.0) <= 0.0 for cell in observed):
        return 0.0
    pairs = [(observed[cell], num * probability) for cell, probability in expected.items() if probability > 0]
    small = [(count, mean) for count, mean in pairs if mean < 5]
    cells = [pair for pair in pairs if pair[1] >= 5]
    if small:
        cells.append((sum(count for count, _ in small), sum(mean for _, mean in small)))
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    degrees = len(cells) - 1
    if degrees == 0:
        return 1.0
    return float(torch.special.gammaincc(torch.tensor(degrees / 2.0).double(), torch.tensor(statistic / 2.0).double()))
