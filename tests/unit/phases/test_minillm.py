"""A learner that is lost while its student is measured comes back as that very student, or the run ends."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.config import load_config
from minillm_ray.config.errors import RunError
from minillm_ray.config.phases import MiniLLMPhase
from minillm_ray.phases.inputs import prepare_inputs
from minillm_ray.phases.minillm import _keep_student, _prompts
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


def test_the_first_prompts_alone_are_sampled_from(
    run_folder: Path, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """train_rows leaves the held-out prompts alone."""
    context: Any = SimpleNamespace(inputs=prepare_inputs(load_config(write_run(), ()), embedded=tmp_path / "embedded"))
    whole, held_out = _prompts(context, MiniLLMPhase(kind="minillm", steps=1), "1-minillm")
    first, same = _prompts(context, MiniLLMPhase(kind="minillm", steps=1, train_rows=1), "1-minillm")
    assert (len(whole), len(first)) == (2, 1) and same.fingerprint == held_out.fingerprint
    assert first.prompt(0).tolist() == whole.prompt(0).tolist()
