"""A crew of scripted actors on a real Ray cluster, and a training on it whose every event a test can read."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from minillm_ray.config.checkpoint import CheckpointSection
from minillm_ray.learner.client import DistillationRanks, RankClient
from minillm_ray.phases.run_checkpoints import RunCheckpoints
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.learner_ranks import LearnerRanks
from minillm_ray.pipeline.ledger import Ledger
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import Launcher, Member, ReplicaSet, State, Supervision
from minillm_ray.pipeline.training import Progress, RoundPlan, Step, Training
from minillm_ray.rollout.client import RolloutClient
from minillm_ray.teacher.client import TeacherClient
from scripted.actors import Script, ScriptedRank, ScriptedRollout, ScriptedTeacher

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
SEED = 3
_NOTICE_SECONDS = 60.0

ACTORS = {"rollout": ScriptedRollout, "teacher": ScriptedTeacher, "learner": ScriptedRank}
CLIENTS = {"rollout": RolloutClient, "teacher": TeacherClient, "learner": RankClient}


class Cast:
    """Scripted actors that wait for a run and outlive it, so that the next one starts in no time."""

    def __init__(self) -> None:
        self._idle: dict[str, list[Any]] = {role: [] for role in ACTORS}

    def wait_for_a_run(self, count: int) -> None:
        """Have at least so many of each role waiting."""
        for role, idle in self._idle.items():
            idle += [ACTORS[role].remote(Script()) for _ in range(count - len(idle))]

    def take(self, role: str, script: Script) -> Any:
        """The handle of one that waited, or of a new one."""
        while self._idle[role]:
            handle = self._idle[role].pop(0)
            try:
                ray.get(handle.reset.remote(script), timeout=60)
                return handle
            except ray.exceptions.RayError:
                ray.kill(handle)
        return ACTORS[role].remote(script)

    def give_back(self, role: str, handle: Any) -> None:
        self._idle[role].append(handle)


@dataclass
class ScriptedLauncher:
    """Resources are there at once."""

    create: Callable[[int], Any]

    def reserve(self, number: int) -> tuple[None, Any]:
        return None, ray.put(None)

    def missing(self) -> str:
        return "nothing"

    def start(self, number: int, reservation: None) -> Any:
        return self.create(number)

    def release(self, reservation: None) -> None: ...


@dataclass
class ScriptedRun:
    """folder: of the checkpoints. events: kind and fields, in order. steps: every optimizer step that was reported.

    cast: where actors come from and go to. launchers: instead of that, by role. hurt: replicas that a test has broken.
    trained: the learner's final weights, once the run is over.
    """

    folder: Path
    plan: RoundPlan
    script: Script = field(default_factory=Script)
    num_prompts: int = 50
    rollouts: int = 2
    teachers: int = 2
    every_steps: int = 2
    supervision: Supervision = field(default_factory=lambda: Supervision(60.0, 2.0, 60.0, 100))
    call_seconds: float = 60.0
    cast: Cast = field(default_factory=Cast)
    launchers: dict[str, Launcher] = field(default_factory=dict)
    hurt: list[Member] = field(default_factory=list)
    requests: Callable[[], Mapping[str, int]] = dict
    on_turn: Callable[["ScriptedRun"], None] = lambda run: None
    on_step: Callable[[Step], None] = lambda step: None
    stop_asked: Callable[[], bool] = lambda: False
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    trained: list[tuple[int, int]] = field(default_factory=list)

    def run(self) -> bool:
        """Start, train, and leave nothing running."""
        self._build()
        try:
            is_done = self.training.run()
            self._notice_the_hurt()
            [self.trained] = self.crew.ask_learner(
                lambda learner: [handle.trained.remote() for handle in learner._handles], "asking for the weights"
            )
            return is_done
        finally:
            self._dismiss()

    def _notice_the_hurt(self) -> None:
        """A run may be over before the cluster has told of the last death: turn on until it has."""
        deadline = time.monotonic() + _NOTICE_SECONDS

        def all_noticed() -> bool:
            assert time.monotonic() < deadline, "a replica that was hurt is still taken for well"
            return all(member not in self.members(member.role) for member in self.hurt)

        self.crew.turn_until(all_noticed)

    def _dismiss(self) -> None:
        """Who is well waits for the next run; who is not ends."""
        for role in ACTORS.keys() - self.launchers.keys():
            for member in self.well(role):
                self.cast.give_back(role, member.client.handle)
                member.client = None
        self.crew.stop()

    def _build(self) -> None:
        reactor = Reactor()

        def replicas(role: str) -> ReplicaSet:
            launcher = ScriptedLauncher(lambda number: CLIENTS[role](self.cast.take(role, self.script)))
            return ReplicaSet(
                role,
                self.launchers.get(role, launcher),
                reactor,
                self.supervision,
                write_event=self._write,
                message=self._say,
            )

        sets = {role: replicas(role) for role in ACTORS}
        learner = LearnerRanks(
            sets["learner"],
            lambda clients: DistillationRanks(clients, startup_seconds=60, call_seconds=60),
            startup_seconds=60,
        )
        self.crew = Crew(
            reactor,
            sets["rollout"],
            sets["teacher"],
            sets["learner"],
            learner,
            call_seconds=self.call_seconds,
            requests=self.requests,
            note_activity=lambda crew: self.on_turn(self),
        )
        ledger = Ledger(self.num_prompts, seed=SEED)
        checkpoints = RunCheckpoints(
            self.folder,
            CheckpointSection(every_steps=self.every_steps, keep=2),
            self.crew,
            phase="minillm",
            first=Progress(0, ledger.state()),
            write_event=self._write,
            message=self._say,
        )
        progress, restore_from = checkpoints.newest()
        self.training = Training(
            self.crew,
            ledger,
            self.plan,
            progress,
            checkpoints,
            on_step=self._stepped,
            stop_asked=self.stop_asked,
        )
        sets["rollout"].scale(self.rollouts)
        sets["teacher"].scale(self.teachers)
        learner.start(1, restore_from=restore_from)

    def members(self, role: str) -> list[Member]:
        """Of one role, by number."""
        return {"rollout": self.crew.rollout, "teacher": self.crew.teacher, "learner": self.crew.ranks}[role].members

    def well(self, role: str) -> list[Member]:
        """Those that serve and that nobody has hurt."""
        return [member for member in self.members(role) if member.state is State.SERVING and member not in self.hurt]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [fields for other, fields in self.events if other == kind]

    def check(self) -> None:
        """Every prompt exactly once, and none older than the bound at the round that trained it."""
        plan = self.plan
        expected = Ledger(self.num_prompts, seed=SEED).take(plan.rollouts * plan.rounds)
        assert sorted(self.trained) == sorted((item.prompt_index, item.epoch) for item in expected)
        for step in self.steps:
            version = 1 + (step.step - 1) // plan.steps_a_round
            assert all(0 <= version - begun <= plan.max_staleness for begun in step.reports[0].versions)

    def by_step(self) -> dict[int, list[tuple[int, int]]]:
        """What each optimizer step trained, as it was made last."""
        return {step.step: step.reports[0].given for step in self.steps}

    def expected_steps(self) -> dict[int, list[tuple[int, int]]]:
        """What each step trains where nothing may be stale: the ledger's order."""
        plan = self.plan
        pairs = [
            (item.prompt_index, item.epoch)
            for item in Ledger(self.num_prompts, seed=SEED).take(plan.rollouts * plan.rounds)
        ]
        return {
            number + 1: pairs[start : start + plan.minibatch]
            for number, start in enumerate(range(0, len(pairs), plan.minibatch))
        }

    def _stepped(self, step: Step) -> None:
        self.on_step(step)
        self.steps.append(replace(step, round=None))  # whose responses would keep their payloads alive

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(fields)))

    def _say(self, text: str) -> None:
        self.events.append(("message", {"text": text}))

    def signal(self, member: Member, number: int) -> int:
        """Send a signal to the process of a scripted actor; its id."""
        self.hurt.append(member)
        process = int(ray.get(member.client.handle.ready.remote(), timeout=60))
        os.kill(process, number)
        return process
