"""When a rollout replica with nothing in hand waits for newer weights, and when for something else."""

from types import SimpleNamespace
from typing import Any

from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.replicas import Member
from minillm_ray.pipeline.training import Progress, RoundPlan, Training


def a_training(*, max_staleness: int, rounds: int = 10, all_pulled: bool = True) -> Any:
    """A training of four responses a round that has begun nothing; its learner has published version 1."""
    ledger = Ledger(100, seed=0)
    crew = SimpleNamespace(responses=None, all_pulled=all_pulled)
    plan = RoundPlan(rollouts=4, minibatch=4, inner_epochs=1, rounds=rounds, max_staleness=max_staleness, mixed=False)
    return Training(crew, ledger, plan, Progress(0, ledger.state()), None, on_step=lambda step: None)  # type: ignore


def admit(training: Any, count: int) -> None:
    training._admission.admit(training._ledger.take(count), 1)


def test_a_replica_waits_for_weights_once_no_prompt_may_start_with_its_own() -> None:
    """Version 1 may begin the responses of two rounds where staleness 1 is allowed; version 2 may begin more."""
    training = a_training(max_staleness=1)
    old, new = Member("rollout", 0, version=1), Member("rollout", 1, version=2)
    admit(training, 7)
    assert not training._awaits_weights(old)
    admit(training, 1)
    assert training._awaits_weights(old)
    assert not training._awaits_weights(new)


def test_at_the_end_of_a_phase_nobody_waits_for_weights() -> None:
    """Newer weights would give nobody work: all that will be trained is begun."""
    training = a_training(max_staleness=1, rounds=2)
    admit(training, 8)
    assert not training._awaits_weights(Member("rollout", 0, version=1))


def test_in_turns_a_replica_waits_until_all_have_pulled() -> None:
    """It could begin with its own weights, but the round begins everywhere at once."""
    member = Member("rollout", 0, version=1)
    assert not a_training(max_staleness=0)._awaits_weights(member)
    assert a_training(max_staleness=0, all_pulled=False)._awaits_weights(member)
