"""What travels from the samplers to the learner: a response, and what the teacher says of it, its payload."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Trajectory:
    """One sampled response of n tokens to a prompt of P tokens. The ids sampled are the ids trained.

    prompt_ids int32 [P], response_ids int32 [n] with the end token if one was drawn; sampler_logprob float32 [n],
    nats, log q_b of each token under the weights that drew it; behavior_logprob float32 [n], log m, or None where
    the student sampled alone; weight_version int32 [n]; truncated: it reached the token limit.
    """

    prompt_index: int
    prompt_ids: npt.NDArray[np.int32]
    response_ids: npt.NDArray[np.int32]
    sampler_logprob: npt.NDArray[np.float32]
    behavior_logprob: npt.NDArray[np.float32] | None
    weight_version: npt.NDArray[np.int32]
    truncated: bool

    @property
    def token_ids(self) -> npt.NDArray[np.int32]:
        """int32 [P + n], prompt and response."""
        return np.concatenate([self.prompt_ids, self.response_ids])


class Payload(ABC):
    """What the teacher says of a response's n tokens. Every log-probability is of the objective's temperature."""

    @property
    @abstractmethod
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """All of it by name, n rows each."""

    @property
    def nbytes(self) -> int:
        """What travels."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True)
class HiddenPayload(Payload):
    """The teacher's final hidden states at the n positions that predict a response's tokens: exact, beside its head.

    data: float32 [n, d_t], or uint16 [n, d_t] that holds bfloat16 bits, since numpy has no such type.
    """

    data: npt.NDArray[np.float32] | npt.NDArray[np.uint16]

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"hidden": self.data}


@dataclass(frozen=True)
class TopKPayload(Payload):
    """The teacher's k most probable tokens at each position, and the mass of all others. Approximate.

    ids int32 [n, k]; logprob float32 [n, k], nats; tail_logprob float32 [n], nats, log of the others' mass together;
    token_logprob float32 [n], nats, log p of the response's own token.
    """

    ids: npt.NDArray[np.int32]
    logprob: npt.NDArray[np.float32]
    tail_logprob: npt.NDArray[np.float32]
    token_logprob: npt.NDArray[np.float32]

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {
            "topk_ids": self.ids,
            "topk_logprob": self.logprob,
            "topk_tail_logprob": self.tail_logprob,
            "token_logprob": self.token_logprob,
        }


@dataclass(frozen=True)
class SampledPayload(Payload):
    """The teacher's log p of the response's own tokens, float32 [n], nats. Unbiased, noisier."""

    token_logprob: npt.NDArray[np.float32]

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"token_logprob": self.token_logprob}
