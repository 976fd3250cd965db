"""A run's checkpoints: whole or given up, beside the training, and found again."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripted.virtual import Call, VirtualRank, VirtualRanks
from scripted.virtual_run import VirtualRun

from minillm_ray.checkpoint.files import CheckpointError, write_file
from minillm_ray.checkpoint.trajectories import read_trajectories, write_trajectories
from minillm_ray.config.checkpoint import CheckpointSection
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.phases import run_checkpoints as module
from minillm_ray.phases.run_checkpoints import RunCheckpoints
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.training import Progress, RoundPlan, Untrained

PLAN = RoundPlan(rollouts=2, minibatch=2, inner_epochs=1, rounds=1, max_staleness=0, mixed=False)


class FileRanks(VirtualRanks):
    """Each rank writes one real file, 1 s after its copy is made."""

    def snapshot(self, folder: Path) -> list[Call]:
        self.folder = folder
        return super().snapshot(folder)

    def written(self) -> list[Call]:
        def write(rank: VirtualRank) -> Any:
            try:
                return [write_file(self.folder, f"rank-{rank.index}.bin", "state")]
            except CheckpointError as error:
                return error

        return [rank.call(1.0, lambda rank=rank: write(rank)) for rank in self.ranks]  # type: ignore[misc]


class Bed(VirtualRun):
    """A crew that does nothing but keep checkpoints in a folder. told: events other than the crew's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, keep: int = 2) -> None:
        super().__init__(PLAN, ranks=2)
        self.folder = folder
        self.keep = keep
        self.messages: list[str] = []
        self.crew.learner._assemble = lambda clients: FileRanks(clients, self.disk)  # type: ignore[arg-type]
        self.crew.learner.start(2, restore_from=None)
        monkeypatch.setattr(module, "_write", SimpleNamespace(remote=self._write_trajectories))
        monkeypatch.setattr(module, "_read", SimpleNamespace(options=self._reader))
        self.store = self.opened()
        self.pass_time(5.0)

    def opened(self) -> RunCheckpoints:
        """As a run that starts on this folder finds it."""
        return RunCheckpoints(
            self.folder,
            CheckpointSection(every_steps=4, keep=self.keep),
            self.crew,
            phase="1-minillm",
            first=Progress(0, Ledger(10, seed=1).state()),
            write_event=self._write,
            message=self.messages.append,
        )

    def pass_time(self, seconds: float) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.crew.turn()

    def save(self, step: int, progress: Progress) -> None:
        self.store.save(step, progress)
        self.pass_time(5.0)

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir())

    def _write_trajectories(self, folder: Path, references: list[Call]) -> Call:
        call = Call()

        def write() -> None:
            try:
                call.end(write_trajectories(folder, module._TRAJECTORIES, [item.get() for item in references]))
            except Exception as error:
                call.end(error=error)

        self.cluster.after(4.0, write)
        return call

    def _reader(self, num_returns: int) -> Any:
        def read(folder: Path) -> Any:
            found = read_trajectories(folder / module._TRAJECTORIES)
            references = [self.cluster.ended(0.1, value=one) for one in found]
            assert len(references) == num_returns
            return references if num_returns > 1 else references[0]

        return SimpleNamespace(remote=read)


@pytest.fixture
def make_bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bed]:
    return lambda **changes: Bed(tmp_path / "checkpoints", monkeypatch, **changes)


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    return make_bed()


def progress_of(rounds: int, bed: Bed | None = None, *, num_finished: int = 0) -> Progress:
    """After so many rounds of two; `num_finished` responses more are there and not trained."""
    ledger = Ledger(10, seed=1)
    ledger.trained(ledger.take(2 * rounds))
    ahead = ledger.take(num_finished + 1)
    finished = [
        Untrained(assignment.place, rounds, bed.cluster.ended(0.0, value=trajectory(assignment.prompt_index)))
        for assignment in ahead[:num_finished]
        if bed is not None
    ]
    return Progress(rounds, ledger.state(), finished, num_texts=3)


def trajectory(prompt_index: int) -> Trajectory:
    return Trajectory(
        prompt_index=prompt_index,
        prompt_ids=np.array([1, 2], np.int32),
        response_ids=np.array([3, 4, 5], np.int32),
        sampler_logprob=np.zeros(3, np.float32),
        behavior_logprob=None,
        weight_version=np.array([1, 1, 2], np.int32),
        truncated=False,
    )


@pytest.mark.parametrize("num_finished", [0, 1, 3])
def test_a_run_that_starts_finds_what_was_saved(bed: Bed, num_finished: int) -> None:
    """Rounds, ledger, plain text, and the finished responses, whose trajectories are references again."""
    saved = progress_of(4, bed, num_finished=num_finished)
    bed.pass_time(1.0)
    bed.save(4, saved)
    found, path = bed.opened().newest()
    assert path == bed.folder / "step-000004"
    assert (found.rounds, found.ledger, found.num_texts) == (4, saved.ledger, 3)
    bed.pass_time(1.0)
    for before, after in zip(saved.responses, found.responses, strict=True):
        assert (after.place, after.version) == (before.place, before.version)
        assert after.trajectory.get().prompt_index == before.trajectory.get().prompt_index
    assert bed.told("checkpoint_saved") == [{"phase": "1-minillm", "step": 4}]


def test_without_a_checkpoint_a_run_starts_where_the_phase_begins(bed: Bed) -> None:
    """And the ranks with the phase's first weights."""
    assert bed.opened().newest() == (Progress(0, Ledger(10, seed=1).state()), None)


def test_the_training_goes_on_while_a_checkpoint_is_written(bed: Bed) -> None:
    """Its owner asks whether it is; nothing is to be seen of it before it is whole."""
    bed.store.save(4, progress_of(4))
    bed.pass_time(0.5)
    assert bed.store.is_writing
    assert [name.startswith(".") for name in bed.folders()] == [True]
    bed.pass_time(2.0)
    assert not bed.store.is_writing
    assert bed.folders() == ["step-000004"]


def test_another_is_due_so_many_steps_after_the_last_that_was_tried(bed: Bed) -> None:
    """Whether or not that one could be written."""
    assert [bed.store.due(step) for step in (3, 4, 5)] == [False, True, True]
    bed.save(5, progress_of(5))
    assert bed.store.was_tried(5)
    assert [bed.store.due(step) for step in (8, 9)] == [False, True]


def test_only_the_newest_are_kept(make_bed: Callable[..., Bed]) -> None:
    """As many as the section says."""
    bed = make_bed(keep=2)
    for step in (2, 4, 6):
        bed.save(step, progress_of(step))
    assert bed.folders() == ["step-000004", "step-000006"]


def refuse(*_: object) -> Any:
    raise CheckpointError("no space left on device")


def _rank_cannot_write(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.write_file", refuse)


def _task_cannot_write(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "_write",
        SimpleNamespace(remote=lambda *_: bed.cluster.ended(0.1, error=CheckpointError("no space left on device"))),
    )


def _driver_cannot_write(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_pipeline_state", refuse)


def _folder_cannot_be_made(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "begin", refuse)


@pytest.mark.parametrize(
    "break_it", [_rank_cannot_write, _task_cannot_write, _driver_cannot_write, _folder_cannot_be_made]
)
def test_a_checkpoint_that_cannot_be_written_is_told_and_given_up(
    bed: Bed, break_it: Callable[[Bed, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actors live, the one before it is as it was, nothing else is left, and the next is tried in its turn."""
    bed.save(4, progress_of(4))
    with monkeypatch.context() as broken:
        break_it(bed, broken)
        bed.save(8, progress_of(8, bed, num_finished=2))
    assert bed.told("checkpoint_failed") == [
        {"phase": "1-minillm", "step": 8, "reason": "no space left on device"},
    ]
    assert bed.messages == ["no checkpoint of step 8: no space left on device"]
    assert (bed.store.is_writing, bed.store.was_tried(8)) == (False, True)
    assert bed.told("learner_lost") == []
    assert bed.folders() == ["step-000004"]
    assert bed.opened().newest()[0].rounds == 4
    bed.save(12, progress_of(12))
    assert bed.opened().newest()[0].rounds == 12


@pytest.mark.parametrize("moment", [0.005, 0.5, 1.2])
def test_a_learner_that_dies_while_it_writes_leaves_the_checkpoint_before(bed: Bed, moment: float) -> None:
    """Whether it copies, writes, or the finished responses are being written; what comes late changes nothing."""
    bed.save(4, progress_of(4))
    bed.crew.learner.on_lost = lambda: went_back.append(bed.store.go_back())
    went_back: list[tuple[Progress, Path | None]] = []
    bed.cluster.after(moment, lambda: bed.clients("learner")[1].die())
    bed.save(8, progress_of(8, bed, num_finished=2))
    bed.pass_time(10.0)
    [(progress, path)] = went_back
    assert (progress.rounds, path) == (4, bed.folder / "step-000004")
    assert not bed.store.is_writing
    assert bed.folders() == ["step-000004"]
    assert bed.told("went_back") == [{"phase": "1-minillm", "rounds": 4}]
    assert bed.told("checkpoint_failed") == []


def test_a_broken_checkpoint_is_skipped_for_the_one_before_it(bed: Bed) -> None:
    """With a message that names it."""
    for step in (4, 8):
        bed.save(step, progress_of(step))
    (bed.folder / "step-000008" / "rank-1.bin").write_text("STATE")
    found, path = bed.opened().newest()
    assert (found.rounds, path) == (4, bed.folder / "step-000004")
    assert "step-000008 is skipped" in bed.messages[0]
