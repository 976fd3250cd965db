"""A learner that is lost while its student is measured comes back as that very student, or the run ends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.config.errors import RunError
from minillm_ray.phases.minillm import _keep_student
from minillm_ray.pipeline.training import Progress


def lose_learner(*, rounds: int, newest: Progress, folder: Path | None) -> Any:
    """A crew whose learner is lost after `rounds` rounds, where the newest checkpoint is that one."""
    crew: Any = SimpleNamespace(learner=SimpleNamespace(restore_from=None))
    checkpoints: Any = SimpleNamespace(newest=lambda: (newest, folder))
    _keep_student(crew, checkpoints, rounds=rounds)
    crew.learner.on_lost()
    return crew


def test_it_takes_up_the_checkpoint_of_the_last_round_and_publishes_nothing() -> None:
    """The samplers hold those weights already."""
    crew = lose_learner(rounds=6, newest=Progress(6, {}), folder=Path("step-6"))
    assert crew.learner.restore_from == Path("step-6")
    crew.learner.on_ready()  # would fail where it published


@pytest.mark.parametrize(("newest", "folder"), [(Progress(4, {}), Path("step-4")), (Progress(0, {}), None)])
def test_where_the_last_checkpoint_could_not_be_written_the_run_ends(newest: Progress, folder: Path | None) -> None:
    """An older student, or the one that the phase began with, would pass for the trained one."""
    with pytest.raises(RunError, match=f"after 6 rounds, but the newest checkpoint is of {newest.rounds}"):
        lose_learner(rounds=6, newest=newest, folder=folder)
