"""Trajectories with what a teacher says of them, made from tiny models without an engine, and the dense reading."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm_ray.data.sets import SupervisedSet, lay_end_to_end
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.engines.heads import model_head
from minillm_ray.engines.hidden_payload import encode_hidden
from minillm_ray.learner.distillation import DistillationLearner, Scored
from minillm_ray.learner.trainer import StudentTrainer
from minillm_ray.objective import ObjectiveSettings
from scripted.models import VOCABULARY

LENGTHS = ((3, 5), (1, 9), (4, 2), (2, 7), (6, 1))
"""(prompt, response) tokens of each sequence."""


def random_sequences(lengths: tuple[tuple[int, int], ...] = LENGTHS, *, seed: int = 0) -> list[tuple[Tensor, int]]:
    """(token ids int64 [P + n], P) of each sequence."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(VOCABULARY, (prompt + response,), generator=generator), prompt) for prompt, response in lengths
    ]


@torch.no_grad()
def token_logprobs(model: torch.nn.Module, token_ids: Tensor, prompt_length: int) -> Tensor:
    """[n, V] of one sequence, alone and unpadded: log-probabilities where each response token is predicted."""
    logits = model(input_ids=token_ids[None]).logits[0]
    return logits.log_softmax(-1)[prompt_length - 1 : -1]


@torch.no_grad()
def score(
    student: torch.nn.Module, teacher: torch.nn.Module, sequences: list[tuple[Tensor, int]], *, version: int = 1
) -> list[Scored]:
    """As if the student at its present weights had drawn the responses and the teacher scored them."""
    scored = []
    for token_ids, prompt_length in sequences:
        response = token_ids[prompt_length:]
        drawn = token_logprobs(student, token_ids, prompt_length).gather(1, response[:, None])[:, 0]
        hidden = teacher.get_decoder()(input_ids=token_ids[None]).last_hidden_state[0, prompt_length - 1 : -1]
        trajectory = Trajectory(
            prompt_index=len(scored),
            prompt_ids=token_ids[:prompt_length].numpy().astype(np.int32),
            response_ids=response.numpy().astype(np.int32),
            sampler_logprob=drawn.numpy(),
            behavior_logprob=None,
            weight_version=np.full(len(response), version, dtype=np.int32),
            truncated=len(response) % 2 == 0,
        )
        scored.append((trajectory, encode_hidden(hidden, hidden.dtype)))
    return scored


def dense_kl(student: torch.nn.Module, teacher: torch.nn.Module, sequences: list[tuple[Tensor, int]]) -> list[Tensor]:
    """KL(q || p) at each response token of each sequence, from whole logits."""
    result = []
    for token_ids, prompt_length in sequences:
        log_q = token_logprobs(student, token_ids, prompt_length)
        log_p = token_logprobs(teacher, token_ids, prompt_length)
        result.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return result


def make_learner(
    trainer: StudentTrainer,
    teacher: torch.nn.Module,
    *,
    micro_batch_tokens: int = 64,
    samples_per_step: int = 0,
    settings: ObjectiveSettings | None = None,
    bad_batch_file: Path | None = None,
    probe_every: int | None = None,
) -> DistillationLearner:
    head = model_head(teacher, vocabulary_size=VOCABULARY)
    return DistillationLearner(
        trainer,
        teacher_head=type(head)(head.weight.detach(), vocab_size=VOCABULARY),
        settings=settings or ObjectiveSettings.from_preset("default", alpha=0.0),
        micro_batch_tokens=micro_batch_tokens,
        samples_per_step=samples_per_step,
        bad_batch_file=bad_batch_file,
        probe_every=probe_every,
    )


def supervised_set(sequences: list[tuple[Tensor, int]]) -> SupervisedSet:
    token_ids, offsets = lay_end_to_end([token_ids.numpy().astype(np.int32) for token_ids, _ in sequences])
    return SupervisedSet(token_ids, offsets, np.array([prompt for _, prompt in sequences], dtype=np.int32), 0, 0, 0, "")


@torch.no_grad()
def label_loss(model: torch.nn.Module, sequences: list[tuple[Tensor, int]]) -> float:
    """transformers' own loss: labels of -100 on prompt and padding, padding on the right and masked."""
    width = max(len(token_ids) for token_ids, _ in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for row, (token_ids, prompt_length) in enumerate(sequences):
        input_ids[row, : len(token_ids)] = token_ids
        mask[row, : len(token_ids)] = 1
        labels[row, prompt_length : len(token_ids)] = token_ids[prompt_length:]
    return float(model(input_ids=input_ids, attention_mask=mask, labels=labels).loss)


@torch.no_grad()
def draw(model: torch.nn.Module, *, seed: int, num_sequences: int = 16, tokens: int = 8) -> list[tuple[Tensor, int]]:
    """Responses that the model itself draws at temperature 1, each to a prompt of one token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (num_sequences, 1), generator=generator)
    for _ in range(tokens):
        probabilities = model(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return [(row, 1) for row in ids]
