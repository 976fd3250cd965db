"""A MiniLLM phase's checkpoints: begun between two rounds, written beside the training, sealed when all is there.

    save:  ranks copy their state --> they write it      --\\
           a task writes finished trajectories             --> the driver writes pipeline.json and seals
    go back:  newest whole checkpoint --> ledger, finished trajectories (as references), the folder for the ranks

A checkpoint that cannot be written (a full disk) is reported and given up; the run goes on with the one before it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from minillm_ray.checkpoint.contents import PipelineState, UntrainedResponse, read_pipeline_state, write_pipeline_state
from minillm_ray.checkpoint.files import CheckpointError, FileRecord
from minillm_ray.checkpoint.folder import PendingCheckpoint, begin, latest
from minillm_ray.checkpoint.trajectories import read_trajectories, write_trajectories
from minillm_ray.config.checkpoint import CheckpointSection
from minillm_ray.data.trajectory import Trajectory
from minillm_ray.learner.client import written_files
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.training import Progress, Untrained

_TRAJECTORIES = "trajectories.safetensors"


class RunCheckpoints:
    """folder: RUN/checkpoints of one phase. first: where the phase begins when there is no checkpoint.

    read, write: Ray tasks that turn the file of finished trajectories into references and back.
    """

    def __init__(
        self,
        folder: Path,
        section: CheckpointSection,
        crew: Crew,
        *,
        phase: str,
        first: Progress,
        write_event: Callable[[str, Mapping[str, Any]], None],
        message: Callable[[str], None],
    ) -> None:
        self._folder, self._section, self._crew = folder, section, crew
        self._phase, self._first = phase, first
        self._write_event, self._message = write_event, message
        self._pending: PendingCheckpoint | None = None
        self._tried_step = 0

    @property
    def is_writing(self) -> bool:
        """Something was begun and is neither on disk nor given up."""
        return self._pending is not None

    def was_tried(self, step: int) -> bool:
        """The state after `step` optimizer steps is on disk, is the phase's beginning, or could not be written."""
        return step == self._tried_step

    def due(self, step: int) -> bool:
        """Whether another is wanted after `step` optimizer steps."""
        return step - self._tried_step >= self._section.every_steps

    def save(self, step: int, progress: Progress) -> None:
        """Begin a checkpoint of this moment; the learner may go on with its next step at once."""
        self._tried_step = step
        try:
            pending = self._pending = begin(self._folder, step)
        except CheckpointError as error:
            self._give_up(step, error)
            return
        state = PipelineState(
            phase=self._phase,
            rounds=progress.rounds,
            num_texts=progress.num_texts,
            ledger=progress.ledger,
            untrained=tuple(UntrainedResponse(place=item.place, version=item.version) for item in progress.responses),
        )
        references = [item.trajectory for item in progress.responses]
        trajectories = _write.remote(pending.path, references) if references else None
        learner, seconds = self._crew.learner, self._crew.call_seconds
        files: list[FileRecord] = []

        def written(parts: Sequence[Sequence[FileRecord] | CheckpointError]) -> None:
            try:
                files.extend(written_files(parts))
            except CheckpointError as error:
                self._give_up(step, error)
                return
            if trajectories is None:
                seal()
            else:
                self._crew.expect(trajectories, done=trajectories_written, failed=failed, work="writing trajectories")

        def trajectories_written(record: FileRecord) -> None:
            files.append(record)
            seal()

        def failed(error: Exception) -> None:
            if self._pending is pending:
                self._give_up(step, error)

        def seal() -> None:
            if self._pending is not pending:
                return
            try:
                files.append(write_pipeline_state(pending.path, state))
                pending.seal(files, weight_version=progress.rounds + 1, keep=self._section.keep)
            except CheckpointError as error:
                self._give_up(step, error)
                return
            self._pending = None
            self._write_event("checkpoint_saved", {"phase": self._phase, "step": step})

        def copied(_: Sequence[None]) -> None:
            learner.call_all(
                learner.learner.written(), seconds=seconds, done=written, work="writing its state", beside=True
            )

        learner.call_all(learner.learner.snapshot(pending.path), seconds=seconds, done=copied, work="copying its state")

    def newest(self) -> tuple[Progress, Path | None]:
        """The newest whole checkpoint, and where the ranks find theirs; without one the phase's beginning."""
        if self._pending is not None:
            self._pending.discard()
            self._pending = None
        checkpoint = latest(self._folder, warn=self._message)
        if checkpoint is None:
            self._tried_step = 0
            return self._first, None
        state = read_pipeline_state(checkpoint.path)
        self._tried_step = checkpoint.step
        count = len(state.untrained)
        references = _read.options(num_returns=count).remote(checkpoint.path) if count else []
        responses = [
            Untrained(item.place, item.version, reference)
            for item, reference in zip(state.untrained, [references] if count == 1 else references, strict=True)
        ]
        return Progress(state.rounds, dict(state.ledger), responses, state.num_texts), checkpoint.path

    def go_back(self) -> tuple[Progress, Path | None]:
        """The same, for a run that lost what it made since."""
        progress, path = self.newest()
        self._write_event("went_back", {"phase": self._phase, "rounds": progress.rounds})
        return progress, path

    def _give_up(self, step: int, error: Exception) -> None:
        if self._pending is not None:
            self._pending.discard()
            self._pending = None
        self._write_event("checkpoint_failed", {"phase": self._phase, "step": step, "reason": str(error)})
        self._message(f"no checkpoint of step {step}: {error}")


@ray.remote(num_cpus=0)
def _write(folder: Path, references: list[Any]) -> FileRecord:
    return write_trajectories(folder, _TRAJECTORIES, ray.get(references))


@ray.remote(num_cpus=0)
def _read(folder: Path) -> list[Trajectory] | Trajectory:
    trajectories = read_trajectories(folder / _TRAJECTORIES)
    return trajectories[0] if len(trajectories) == 1 else trajectories
