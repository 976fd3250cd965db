"""A rank's share of a minibatch, ready for the objective: micro-batches, and what teacher and sampler said."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.data.trajectory import Payload, Trajectory
from minillm_ray.engines.payload_packing import packed_teacher
from minillm_ray.learner.micro_batches import MicroBatch, collate, split_by_tokens
from minillm_ray.objective import TeacherArgument

Scored = tuple[Trajectory, Payload]


@dataclass(frozen=True)
class ScoredBatch:
    """micro_batches: what is trained, in order. The lists hold an entry for each trajectory, by its number.

    payloads: of one kind, as they came: they are read a micro-batch at a time, and not at all where nobody asks.
    """

    micro_batches: list[MicroBatch]
    payloads: list[Payload]
    sampler_logprob: list[Tensor]
    behavior_logprob: list[Tensor] | None

    def teacher(self, batch: MicroBatch) -> TeacherArgument:
        """What is known of the teacher at the micro-batch's N trained slots, as the objective takes it."""
        return packed_teacher([self.payloads[member] for member in batch.members], batch.tokens.device)

    def sampler(self, batch: MicroBatch) -> Tensor:
        """float32 [N], nats: log q_b."""
        return _packed(batch, self.sampler_logprob)

    def behavior(self, batch: MicroBatch) -> Tensor | None:
        """float32 [N], nats: log m; None where the student sampled alone."""
        return None if self.behavior_logprob is None else _packed(batch, self.behavior_logprob)


def scored_batch(scored: Sequence[Scored], *, micro_batch_tokens: int, device: torch.device) -> ScoredBatch:
    """The share on `device`, cut into micro-batches of at most `micro_batch_tokens` padded positions.

    Raises TypeError where payloads are of several kinds.
    """
    kinds = sorted({type(payload).__name__ for _, payload in scored})
    if len(kinds) > 1:
        raise TypeError(f"a minibatch with payloads of {' and '.join(kinds)}; expected one kind, teacher.payload")
    sequences = [trajectory.token_ids for trajectory, _ in scored]
    prompt_lengths = [len(trajectory.prompt_ids) for trajectory, _ in scored]
    groups = split_by_tokens([len(sequence) for sequence in sequences], micro_batch_tokens)
    behavior = [trajectory.behavior_logprob for trajectory, _ in scored]
    return ScoredBatch(
        micro_batches=[collate(sequences, prompt_lengths, group).to(device) for group in groups],
        payloads=[payload for _, payload in scored],
        sampler_logprob=[torch.tensor(trajectory.sampler_logprob, device=device) for trajectory, _ in scored],
        behavior_logprob=(
            None
            if any(logprob is None for logprob in behavior)
            else [torch.tensor(logprob, device=device) for logprob in behavior]
        ),
    )


def _packed(batch: MicroBatch, items: Sequence[Tensor]) -> Tensor:
    return torch.cat([items[member] for member in batch.members])
