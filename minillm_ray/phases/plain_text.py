"""Plain text for the language-modelling term, chunk after chunk; scored by the teacher where the term asks for it."""

import numpy as np
import ray
from ray import ObjectRef

from minillm_ray.data import TextChunks, epoch_order
from minillm_ray.data.trajectory import HiddenPayload, Trajectory


class PlainTextSupply:
    """Chunks without end, each epoch in an order of its own; a step takes `chunks_a_step` of them.

    A chunk goes as a trajectory whose prompt is its first token, so that teacher and learner treat it like a response.
    with_teacher: a divergence to the teacher is mixed in; elsewhere payloads are empty.
    """

    def __init__(self, chunks: TextChunks, *, chunks_a_step: int, seed: int, with_teacher: bool) -> None:
        self.chunks_a_step = chunks_a_step
        self.with_teacher = with_teacher
        self._chunks = chunks
        self._seed = seed

    def chunk(self, number: int) -> ObjectRef:
        """A reference to chunk `number`, from 0."""
        epoch, place = divmod(number, len(self._chunks))
        index = int(epoch_order(len(self._chunks), epoch, self._seed)[place])
        return ray.put(as_trajectory(index, self._chunks.chunk(index)))

    def no_payload(self) -> ObjectRef:
        """What stands where a payload would, where the teacher is not asked."""
        return ray.put(HiddenPayload(np.zeros((0, 0), np.float32)))


def as_trajectory(index: int, token_ids: np.ndarray) -> Trajectory:
    """A chunk of n + 1 tokens as a trajectory of n: every token but the first is trained."""
    return Trajectory(
        prompt_index=index,
        prompt_ids=token_ids[:1],
        response_ids=token_ids[1:],
        sampler_logprob=np.zeros(len(token_ids) - 1, np.float32),
        behavior_logprob=None,
        weight_version=np.zeros(len(token_ids) - 1, np.int32),
        truncated=False,
    )
