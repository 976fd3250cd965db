"""What travels from the samplers to the learner: a response, and what the teacher says of it."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class HiddenPayload:
    """The teacher's final hidden states at the n positions that predict a response's tokens.

    data: float32 [n, d_t], or uint16 [n, d_t] that holds bfloat16 bits, since numpy has no such type.
    """

    data: npt.NDArray[np.float32] | npt.NDArray[np.uint16]
