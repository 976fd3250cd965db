"""RUN between two drivers: when it is continued, that one driver works in it at a time, and what is finished."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from minillm_ray.config import InputError, load_config
from minillm_ray.config.load import dump_config
from minillm_ray.config.run import RunConfig
from minillm_ray.phases.run import _settle
from minillm_ray.phases.run_context import Models
from minillm_ray.phases.run_folder import FinishedPhase, finished_phase, is_continued, owned, record_finished

WriteRun = Callable[..., Path]


@pytest.fixture
def config(write_run: WriteRun) -> RunConfig:
    return load_config(write_run())


@pytest.fixture
def earlier(config: RunConfig) -> RunConfig:
    """The configuration of a run that has left its folder."""
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    return config


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as caught:
        is_continued(config)
    return str(caught.value)


def test_a_folder_that_is_new_or_empty_begins_a_run(config: RunConfig) -> None:
    """Nothing is made by asking."""
    assert not is_continued(config)
    assert not config.run_dir.exists()
    config.run_dir.mkdir()
    assert not is_continued(config)


def test_the_same_command_continues_its_run(earlier: RunConfig, write_run: WriteRun) -> None:
    """Also where the cluster is another now: more replicas, other deadlines."""
    assert is_continued(earlier)
    assert is_continued(load_config(write_run(), ["rollout.replicas=4", "pipeline.mode=async"]))


def test_a_run_that_was_moved_is_still_the_same_run(earlier: RunConfig, write_run: WriteRun, tmp_path: Path) -> None:
    """Its folder's own name is not among the settings that count."""
    moved = tmp_path / "moved"
    earlier.run_dir.rename(moved)
    assert is_continued(load_config(write_run(), [f"run_dir={moved}"]))


def test_a_foreign_folder_is_refused(config: RunConfig) -> None:
    """Whatever lies there, it is not written over."""
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").touch()
    message = refusal(config)
    assert f"run_dir {config.run_dir} holds no run, but is not empty; expected a new folder" in message
    assert "--fresh" in message
    assert "-s run_dir=OTHER" in message


def test_a_run_that_computes_something_else_is_refused_with_every_change(
    earlier: RunConfig, write_run: WriteRun
) -> None:
    """One line a setting: what it was, what it is now."""
    message = refusal(load_config(write_run(), ["seed=11", "phases.0.steps=4", "rollout.replicas=2"]))
    assert message.splitlines()[1:3] == ["  phases.0.steps: was 2, is 4", "  seed: was 10, is 11"]
    assert "replicas" not in message
    assert "Set them back. Add --fresh" in message


def test_a_run_of_an_older_release_is_continued_where_new_settings_have_their_defaults(
    earlier: RunConfig, write_run: WriteRun
) -> None:
    """A setting that it did not know is no change; set to something else, it is one."""
    path = earlier.run_dir / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    del tree["learner"]["schedule"], tree["evaluation"]
    path.write_text(yaml.safe_dump(tree))
    assert is_continued(earlier)
    assert "learner.schedule: was 'constant', is 'cosine'" in refusal(
        load_config(write_run(), ["learner.schedule=cosine"])
    )


def test_two_drivers_never_work_in_one_folder(tmp_path: Path) -> None:
    """The second is refused, with the first one's process; afterwards the folder is free again."""
    run_dir = tmp_path / "run"
    with owned(run_dir):
        refused = pytest.raises(
            InputError, match=rf"{run_dir} is in use by another train \(process {os.getpid()}\)\. Wait"
        )
        with refused, owned(run_dir):
            pytest.fail("entered")
    with owned(run_dir):
        pass


def test_a_folder_in_use_is_not_moved_aside(tmp_path: Path) -> None:
    """Neither by --fresh, nor by the second of two that found it empty and began at the same time."""
    run_dir, staging = tmp_path / "run", tmp_path / "staging"
    with owned(run_dir), pytest.raises(InputError, match="in use by another train"):
        _settle(staging, run_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    _settle(staging, run_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]


SCORES = {"after": {"reverse_kl": 0.5}}


def test_a_phase_is_unfinished_until_it_is_recorded(tmp_path: Path) -> None:
    """Then its models and its rows are what the next phase and the closing table go on with."""
    phase = FinishedPhase(Models(student="org/student", teacher=str(tmp_path / "elsewhere" / "teacher")), SCORES)
    assert finished_phase(tmp_path / "run", "1-sft-student") is None
    record_finished(tmp_path / "run", "1-sft-student", phase)
    assert finished_phase(tmp_path / "run", "1-sft-student") == phase
    assert finished_phase(tmp_path / "run", "2-minillm") is None


def test_models_inside_the_run_are_found_where_it_was_moved(tmp_path: Path) -> None:
    """Those outside stay where they are."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    student, teacher = run / "phases" / "1-sft-student" / "best", tmp_path / "teacher"
    record_finished(run, "1-sft-student", FinishedPhase(Models(str(student), str(teacher)), None))
    shutil.move(run, moved)
    found = finished_phase(moved, "1-sft-student")
    assert found is not None
    assert found.models == Models(str(moved / "phases" / "1-sft-student" / "best"), str(teacher))
