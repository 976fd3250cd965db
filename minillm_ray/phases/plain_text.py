"""Plain text for the language-modelling term, chunk after chunk; scored by the teacher where the term asks for it."""

import numpy as np
import ray
from ray import ObjectRef

from minillm_ray.data import TextChunks, epoch_order
from minillm_ray.data.trajectory import HiddenPayload, Trajectory
from minillm_ray.teacher.client import TeacherPool


class PlainTextSupply:
    """Hands out `chunks_a_step` chunks a time, each epoch in an order of its own.

    A chunk goes as a trajectory whose prompt is its first token, so that teacher and learner treat it like a response.
    teacher: None where no divergence to the teacher is mixed in; payloads are then empty.
    """

    def __init__(self, chunks: TextChunks, *, chunks_a_step: int, seed: int, teacher: TeacherPool | None) -> None:
        self._chunks = chunks
        self._chunks_a_step = chunks_a_step
        self._seed = seed
        self._teacher = teacher
        self._num_taken = 0

    def next(self) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """References to the next chunks and to their payloads."""
        chosen = []
        for _ in range(self._chunks_a_step):
            epoch, place = divmod(self._num_taken, len(self._chunks))
            chosen.append(int(epoch_order(len(self._chunks), epoch, self._seed)[place]))
            self._num_taken += 1
        texts = [as_trajectory(index, self._chunks.chunk(index)) for index in chosen]
        references = [ray.put(text) for text in texts]
        if self._teacher is not None:
            payloads, _ = self._teacher.score(references)
            return references, payloads
        return references, [ray.put(_no_payload(text)) for text in texts]


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


def _no_payload(text: Trajectory) -> HiddenPayload:
    return HiddenPayload(np.zeros((len(text.response_ids), 0), np.float32))
