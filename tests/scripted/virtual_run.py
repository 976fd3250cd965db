"""A whole training on a virtual cluster, with its checkpoints in memory: what a test can break and look at."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.learner_ranks import LearnerRanks
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.protocols import Task
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Member, ReplicaSet, Supervision
from minillm_ray.pipeline.training import Progress, RoundPlan, Step, Training
from scripted.virtual import (
    Call,
    Drawn,
    VirtualActor,
    VirtualCluster,
    VirtualLauncher,
    VirtualRank,
    VirtualRanks,
    VirtualRollout,
    VirtualTeacher,
)

SUPERVISION = Supervision(
    startup_seconds=60.0, heartbeat_seconds=6.0, progress_seconds=100.0, max_restarts_per_hour=1000
)


@dataclass
class VirtualText:
    """Chunk number n is n."""

    cluster: VirtualCluster
    chunks_a_step: int
    with_teacher: bool

    def chunk(self, number: int) -> Call:
        call = Call()
        call.end(number)
        return call

    def no_payload(self) -> Call:
        return self.chunk(-1)


@dataclass
class MemoryCheckpoints:
    """Checkpoints as a Training sees them. fails: whether the disk is full."""

    crew: Crew
    first: Progress
    disk: dict[Path, list[Drawn]]
    write_event: Callable[[str, Mapping[str, Any]], None]
    every_steps: int
    kept: list[tuple[int, Progress, Path]] = field(default_factory=list)
    fails: bool = False
    is_writing: bool = False
    tried: int = 0

    def was_tried(self, step: int) -> bool:
        return self.tried == step

    def due(self, step: int) -> bool:
        return step - self.tried >= self.every_steps

    def save(self, step: int, progress: Progress) -> None:
        assert not self.is_writing
        self.tried = step
        if self.fails:
            self.write_event("checkpoint_failed", {"step": step})
            return
        self.is_writing = True
        learner, folder = self.crew.learner, Path(f"step-{step}-{len(self.kept)}")
        untrained = sorted(item.place for item in progress.responses)
        assert set(untrained) <= set(progress.ledger["untrained"])

        def copied(_: Any) -> None:
            learner.call_all(learner.learner.written(), seconds=60, done=written, work="writing")

        def written(parts: list[Any]) -> None:
            [(_, self.disk[folder])] = parts[0]
            self.kept.append((step, progress, folder))
            self.is_writing = False
            self.write_event("checkpoint_saved", {"step": step})

        learner.call_all(learner.learner.snapshot(folder), seconds=60, done=copied, work="copying")

    def go_back(self) -> tuple[Progress, Path | None]:
        self.is_writing = False
        self.tried, progress, path = self.kept[-1] if self.kept else (0, self.first, None)
        self.write_event("went_back", {"step": self.tried})
        return progress, path


@dataclass
class VirtualRun:
    """events: kinds and fields in order, `message` among them. steps: all that were reported. live: actors by role."""

    plan: RoundPlan
    num_prompts: int = 20
    rollouts: int = 2
    teachers: int = 2
    ranks: int = 1
    seed: int = 0
    every_steps: int = 2
    supervision: Supervision = SUPERVISION
    text: tuple[int, bool] | None = None
    draw_seconds: Callable[[Task], float] | None = None
    requests: Callable[[], Mapping[str, int]] = dict
    stop_asked: Callable[[], bool] = lambda: False
    on_turn: Callable[["VirtualRun"], None] = lambda run: None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cluster = cluster = VirtualCluster()
        rng = random.Random(self.seed)
        draw_seconds = self.draw_seconds or (lambda task: rng.uniform(0.5, 3.0))
        reactor = Reactor(cluster.clock, ready_among=cluster.ready_among, value_of=cluster.value_of)
        self.disk: dict[Path, list[Drawn]] = {}
        self.launchers = {
            "rollout": VirtualLauncher(
                cluster, lambda number: VirtualRollout(cluster, draw_seconds, rng.uniform(0.05, 0.5))
            ),
            "teacher": VirtualLauncher(cluster, lambda number: VirtualTeacher(cluster, rng.uniform(0.1, 0.5))),
            "learner": VirtualLauncher(cluster, lambda number: VirtualRank(cluster, number, 0.5)),
        }
        self.sets = {
            role: ReplicaSet(
                role,
                launcher,
                reactor,
                self.supervision,
                write_event=self._write,
                message=lambda text: self._write("message", {"text": text}),
                clock=cluster.clock,
            )
            for role, launcher in self.launchers.items()
        }
        learner = LearnerRanks(
            self.sets["learner"], lambda clients: VirtualRanks(clients, self.disk), startup_seconds=60.0
        )
        self.crew = Crew(
            reactor,
            self.sets["rollout"],
            self.sets["teacher"],
            self.sets["learner"],
            learner,
            call_seconds=60.0,
            requests=self.requests,
            note_activity=lambda crew: self._turned(),
            clock=cluster.clock,
        )
        self.ledger = Ledger(self.num_prompts, seed=3)
        self.checkpoints = MemoryCheckpoints(
            self.crew, Progress(0, self.ledger.state()), self.disk, self._write, self.every_steps
        )
        self.text_supply = None if self.text is None else VirtualText(cluster, *self.text)

    def run(self) -> bool:
        progress, path = self.checkpoints.go_back()
        self.events.clear()
        self.training = Training(
            self.crew,
            self.ledger,
            self.plan,
            progress,
            self.checkpoints,
            on_step=self.steps.append,
            stop_asked=self.stop_asked,
            plain_text=self.text_supply,
            clock=self.cluster.clock,
        )
        self.sets["rollout"].scale(self.rollouts)
        self.sets["teacher"].scale(self.teachers)
        self.crew.learner.start(self.ranks, restore_from=path)
        return self.training.run()

    def members(self, role: str) -> list[Member]:
        return self.sets[role].members

    def clients(self, role: str) -> list[VirtualActor]:
        return [member.client for member in self.members(role) if member.client is not None]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [fields for other, fields in self.events if other == kind]

    @property
    def trained(self) -> list[Drawn]:
        """All that the learner's final weights are made of."""
        return self.steps[-1].reports[0].trained

    def check(self) -> None:
        """Every prompt exactly once, and none older than the bound at the round that trained it."""
        plan = self.plan
        expected = Ledger(self.num_prompts, seed=3).take(plan.rollouts * plan.rounds)
        got = [(drawn.task.prompt_index, drawn.task.draw) for drawn in self.trained[:: plan.inner_epochs]]
        assert plan.inner_epochs == 1
        assert sorted(got) == sorted((item.prompt_index, item.epoch) for item in expected)
        for number, drawn in enumerate(self.trained):
            version = 1 + number // plan.rollouts
            assert 0 <= version - drawn.versions[0] <= plan.max_staleness

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(fields)))

    def _turned(self) -> None:
        assert self.cluster.now < 20_000, f"no end in sight: {self.events[-20:]}"
        self.on_turn(self)
