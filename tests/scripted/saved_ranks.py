"""What two learner ranks do in the test of their saved state, each in a process of its own.

Everything is made from seeds, so that the ranks and the test make the same models and batches by themselves.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm_ray.checkpoint.files import FileRecord
from minillm_ray.learner.lora import LoraSettings, with_adapters
from minillm_ray.learner.ranks import Rank, join_ranks
from minillm_ray.learner.state import load_state, save_state
from minillm_ray.learner.supervised import SupervisedLearner
from scripted.models import make_trainer, one_rank, tiny
from scripted.scored import random_sequences, supervised_set

KINDS = ("whole", "adapters")
SEQUENCES = random_sequences()
BATCHES = [[0, 1, 2, 3, 4], [3, 1], [2, 4, 0]]
"""Two steps are taken before the state is saved, one after."""


@dataclass(frozen=True)
class Outcome:
    """Of one rank and one kind of student: whole tensors, when saved and after a further step in the same trainer, in a
    fresh one, and in one that read what a single rank wrote."""

    records: list[FileRecord]
    saved: dict[str, Tensor]
    continued: dict[str, Tensor]
    resumed: dict[str, Tensor]
    from_one: dict[str, Tensor]


def make(kind: str, *, rank: Rank | None = None, seed: int = 0) -> SupervisedLearner:
    """Around a student with tied weights, or one whose adapters have rank 1: a row that two ranks cannot share.

    The seed is that of the weights that are trained.
    """
    model = tiny("llama", tie_word_embeddings=True, seed=seed if kind == "whole" else 0)
    if kind == "adapters":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = with_adapters(model, LoraSettings(rank=1, alpha=4.0, target_modules=None))
    return SupervisedLearner(
        make_trainer(model, rank=rank or one_rank(), has_adapters=kind == "adapters"),
        train=supervised_set(SEQUENCES),
        validation=supervised_set(SEQUENCES[:3]),
        micro_batch_tokens=11,
        logits_memory_mb=1,
    )


def weights_of(learner: SupervisedLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.trainer.student.named_weights()}


def save_after_two_steps(kind: str, folder: Path, *, rank: Rank | None = None) -> tuple[SupervisedLearner, Outcome]:
    """The learner that was saved, and the outcome of which only the first half is known."""
    learner = make(kind, rank=rank)
    for batch in BATCHES[:2]:
        learner.step(batch)
    learner.validation_loss()  # a forward pass alone leaves parameters whole that are sharded otherwise
    records = save_state(learner.trainer, folder)
    return learner, Outcome(records, weights_of(learner), {}, {}, {})


def resume(kind: str, folder: Path, *, rank: Rank | None = None) -> SupervisedLearner:
    """A learner of other weights, in use already, brought to the state in `folder`."""
    learner = make(kind, rank=rank, seed=5)
    learner.step(BATCHES[0])
    learner.validation_loss()
    load_state(learner.trainer, folder)
    return learner


def run_rank(index: int, size: int, address: str, folder: Path) -> None:
    """Entry point of one process. For each kind it reads folder/one-KIND and writes folder/two-KIND."""
    torch.set_num_threads(1)
    rank = join_ranks(index, size, address, device="cpu", timeout_seconds=60, always_group=False)
    outcomes = {}
    for kind in KINDS:
        learner, outcome = save_after_two_steps(kind, folder / f"two-{kind}", rank=rank)
        rank.sum([0.0])  # both have written
        learners = [
            learner,
            resume(kind, folder / f"two-{kind}", rank=rank),
            resume(kind, folder / f"one-{kind}", rank=rank),
        ]
        for each in learners:
            each.step(BATCHES[2])
        outcomes[kind] = Outcome(outcome.records, outcome.saved, *(weights_of(each) for each in learners))
    torch.save(outcomes, folder / f"rank-{index}.pt")
    torch.distributed.destroy_process_group()
