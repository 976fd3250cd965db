"""What the actors of a role are started with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minillm_ray.config import load_config
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.phases.cluster import cluster_facts
from minillm_ray.phases.inputs import prepare_inputs
from minillm_ray.phases.roles import RunParts, learner_launcher, schedule, teacher_launcher


@pytest.fixture
def parts(run_folder: Path, write_run: Callable[..., Path], tmp_path: Path) -> RunParts:
    config = load_config(write_run(), ())
    return RunParts(config, cluster_facts(config, gpus=0.0), prepare_inputs(config, embedded=tmp_path / "embedded"))


@pytest.mark.parametrize("in_turn", [True, False])
def test_a_learners_threads_sleep_at_once_where_other_roles_work_beside_it(parts: RunParts, in_turn: bool) -> None:
    launcher = learner_launcher(
        parts,
        student=parts.inputs.student,
        teacher=parts.inputs.teacher,
        settings=ObjectiveSettings(),
        schedule=schedule(parts.config, parts.config.phases[0], num_steps=2),
        in_turn=in_turn,
    )
    assert ("OMP_WAIT_POLICY" in launcher.environment) != in_turn


def test_an_engines_threads_sleep_at_once(parts: RunParts) -> None:
    """Student and teacher may both be at work, in sync mode too."""
    assert teacher_launcher(parts, model=parts.inputs.teacher).environment["OMP_WAIT_POLICY"] == "passive"
