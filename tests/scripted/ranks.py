"""What one learner rank does in the two-rank test, in a process of its own, and what it leaves for comparison.

Everything is made from seeds, so that each rank and the test make the same models and sequences by themselves.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm_ray.learner.lora import LoraSettings, with_adapters
from minillm_ray.learner.ranks import Rank, join_ranks
from minillm_ray.learner.sharding import ComputeDtype
from minillm_ray.learner.step_metrics import combine_step, finish_step
from minillm_ray.learner.supervised import SupervisedLearner
from minillm_ray.telemetry.reductions import Mean, Reduction
from scripted.models import make_trainer, tiny
from scripted.scored import make_learner, random_sequences, score, supervised_set

SEQUENCES = random_sequences()
ONE_SEQUENCE = random_sequences(((2, 6),), seed=4)
MICRO_BATCH_TOKENS = 11


@dataclass(frozen=True)
class Outcome:
    """Of one rank. statistics: its part of each distillation step; weights: whole tensors, after all steps."""

    norms: list[float]
    statistics: list[dict[str, Reduction]]
    divergence: Mean
    distilled: dict[str, Tensor]
    losses: list[float]
    validation: float
    supervised: dict[str, Tensor]
    adapted: dict[str, Tensor]


def work(rank: Rank, *, compute_dtype: ComputeDtype = "float32") -> Outcome:
    """MiniLLM: two steps and a measurement; supervised: two steps of all weights, and two of adapters alone."""
    teacher = tiny("llama", seed=7, hidden_size=24, num_hidden_layers=1).eval()
    batches = [score(_student(), teacher, sequences) for sequences in (SEQUENCES, ONE_SEQUENCE)]
    trainer = make_trainer(_student(), rank=rank, compute_dtype=compute_dtype)
    learner = make_learner(trainer, teacher, micro_batch_tokens=MICRO_BATCH_TOKENS)
    # The second batch is a single sequence: the other rank has none.
    reports = [learner.step(batch[rank.index :: rank.size]) for batch in batches]
    divergence = learner.divergence(batches[0][rank.index :: rank.size])
    distilled = {name: tensor.clone() for name, tensor in trainer.student.named_weights()}

    tuned = SupervisedLearner(
        make_trainer(_student(), rank=rank, compute_dtype=compute_dtype),
        train=supervised_set(SEQUENCES),
        validation=supervised_set(SEQUENCES[:3]),
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        logits_memory_mb=1,
    )
    steps = [tuned.step([0, 1, 2, 3, 4]), tuned.step([2])]
    validation = tuned.validation_loss()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # of the adapters' first values
        adapters = with_adapters(_student(), LoraSettings(rank=2, alpha=4.0, target_modules=None))
    adapted = SupervisedLearner(
        make_trainer(adapters, rank=rank, compute_dtype=compute_dtype, has_adapters=True),
        train=supervised_set(SEQUENCES),
        validation=supervised_set(SEQUENCES[:3]),
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        logits_memory_mb=1,
    )
    steps += [adapted.step([0, 1, 2, 3, 4]) for _ in range(2)]
    return Outcome(
        norms=[report.outcome.gradient_norm for report in reports] + [outcome.gradient_norm for _, outcome in steps],
        statistics=[report.metrics for report in reports],
        divergence=divergence,
        distilled=distilled,
        losses=[loss for loss, _ in steps],
        validation=validation,
        supervised={name: tensor.clone() for name, tensor in tuned.trainer.student.named_weights()},
        adapted={name: tensor.clone() for name, tensor in adapted.trainer.student.named_weights()},
    )


def _student() -> torch.nn.Module:
    return tiny("llama", tie_word_embeddings=True)


def combined(outcomes: list[Outcome], step: int) -> dict[str, float]:
    """The numbers of one distillation step, over all ranks."""
    return finish_step(combine_step([outcome.statistics[step] for outcome in outcomes]))


def run_rank(index: int, size: int, address: str, folder: Path) -> None:
    """Entry point of one process: joins the others, works, and leaves its Outcome in the folder."""
    torch.set_num_threads(1)
    rank = join_ranks(index, size, address, device="cpu", timeout_seconds=60, always_group=False)
    assert rank.sum([1.0, float(index)]) == [float(size), float(sum(range(size)))]
    assert rank.max([float(index)]) == [float(size - 1)]
    outcome = {"float32": work(rank), "bfloat16": work(rank, compute_dtype="bfloat16")}
    torch.save(outcome, folder / f"rank-{index}.pt")
    torch.distributed.destroy_process_group()
