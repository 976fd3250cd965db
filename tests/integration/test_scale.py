"""A run that goes on changes its size: more is asked for than there is, a node joins, replicas leave. Real Ray."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from scripted.actors import Script, ScriptedRollout, ScriptedTeacher
from scripted.crew import ScriptedRun

from minillm_ray.cli import main
from minillm_ray.config.placement import RolePlacement
from minillm_ray.phases.control import ScaleRequests
from minillm_ray.phases.crew_watch import CrewWatch
from minillm_ray.phases.launchers import ActorLauncher
from minillm_ray.phases.roles import launched
from minillm_ray.phases.status import StatusFile, read_status
from minillm_ray.pipeline.replicas import State
from minillm_ray.pipeline.training import RoundPlan
from minillm_ray.rollout.client import RolloutClient
from minillm_ray.teacher.client import TeacherClient

TESTS = Path(__file__).parents[1]
ONE_CPU = 3
"""Threads of a replica that reserves one CPU: a third of its threads, since the roles take turns."""


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """A head with one CPU, to which nodes can be added."""
    folder = tempfile.mkdtemp(prefix="r")  # short: sockets lie below it
    os.mkdir(os.path.join(folder, "ray"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", str(TESTS))  # actors of a cluster that is named do not have the driver's path
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica waits for is said every half second."""
    monkeypatch.setattr("minillm_ray.pipeline.replicas.REMINDER_SECONDS", 0.5)
    monkeypatch.setattr("minillm_ray.phases.roles.REMINDER_SECONDS", 0.5)


def launcher(role: str, create: Callable[[dict[str, Any]], Any]) -> ActorLauncher:
    """Placement groups of one CPU, as a run makes them, with scripted actors in them."""
    return ActorLauncher(
        RolePlacement(role, f"{role}.replicas", 1, ONE_CPU, 0), {}, lambda options, number: create(options)
    )


class ScaledRun:
    """A scripted run that is watched as a real one is, and does what a test wants next whenever it can."""

    def __init__(self, run_dir: Path, plan: list[Callable[["ScaledRun"], bool]]) -> None:
        self.run_dir = run_dir
        self._plan = plan
        self._status = StatusFile(run_dir)
        self.scripted = ScriptedRun(
            folder=run_dir / "checkpoints",
            plan=RoundPlan(rollouts=4, minibatch=4, inner_epochs=1, rounds=10**6, max_staleness=1, mixed=False),
            script=Script(tokens=2, token_seconds=0.01),
            num_prompts=40,
            rollouts=1,
            teachers=1,
            every_steps=50,
            launchers={
                "rollout": launcher(
                    "rollout",
                    lambda options: RolloutClient(ScriptedRollout.options(**options).remote(self.scripted.script)),
                )
            },
            on_turn=self._turn,
            stop_asked=lambda: not self._plan,
        )
        self._watch = CrewWatch(run_dir / "trace.json", self._status, write_event=self.scripted._write)
        self.scripted.requests = ScaleRequests(run_dir, write_event=self.scripted._write)

    def run(self) -> bool:
        try:
            return self.scripted.run()
        finally:
            self._watch.close()
            self._status.close()

    def states(self) -> dict[int, State]:
        return {member.number: member.state for member in self.scripted.members("rollout")}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.scripted.events if found == kind]

    def _turn(self, scripted: ScriptedRun) -> None:
        self._watch(scripted.crew)
        if self._plan and self._plan[0](self):
            self._plan.pop(0)


@pytest.mark.usefixtures("impatient")
def test_growth_waits_for_a_node_names_what_is_missing_and_a_drained_replica_loses_nothing(
    small_cluster: Cluster, tmp_path: Path
) -> None:
    """rollout=2 on one CPU: the run goes on with one. A node joins: it works there. rollout=1: it leaves when done."""
    added: list[Any] = []
    steps_before: list[int] = []

    def grows(run: ScaledRun) -> bool:
        if len(run.scripted.steps) < 2:
            return False
        assert main(["scale", str(tmp_path), "rollout=2"]) == 0
        return True

    def waiting(run: ScaledRun) -> list[str]:
        return [fields["missing"] for fields in run.events("rollout_waiting") if fields["number"] == 1]

    def waits_while_the_run_goes_on(run: ScaledRun) -> bool:
        if not waiting(run):
            return False
        steps_before.append(len(run.scripted.steps))
        return len(run.scripted.steps) >= steps_before[0] + 2

    def is_given_a_node(run: ScaledRun) -> bool:
        assert run.states() == {0: State.SERVING, 1: State.RESERVED}
        added.append(small_cluster.add_node(num_cpus=1))
        return True

    def works_there(run: ScaledRun) -> bool:
        members = run.scripted.members("rollout")
        if not (members[1].state is State.SERVING and members[1].load):
            return False
        status = read_status(tmp_path)
        return [one.state for one in status.replicas["rollout"]] == ["serving", "serving"]

    def shrinks(run: ScaledRun) -> bool:
        assert main(["scale", str(tmp_path), "rollout=1"]) == 0
        return True

    def is_one_again(run: ScaledRun) -> bool:
        return bool(run.events("rollout_drained"))

    run = ScaledRun(
        tmp_path,
        [grows, waits_while_the_run_goes_on, is_given_a_node, works_there, shrinks, is_one_again],
    )
    assert run.run() is False  # it was asked to stop, with a checkpoint
    missing = waiting(run)[0]
    assert "one rollout replica needs 1 CPU on one node; 0 CPU are free in the whole cluster" in missing
    messages = [fields["text"] for fields in run.events("message")]
    assert f"rollout 1 is waiting for resources: {missing}" in messages
    assert run.events("scale_requested") == [{"rollout": 2}, {"rollout": 1}]
    assert {fields["number"] for fields in run.events("rollout_ready")} == {0, 1}
    assert run.events("rollout_drained") == [{"number": 1}]
    assert not run.events("rollout_lost")
    trained = run.scripted.trained
    assert len(set(trained)) == len(trained) == 4 * len(run.scripted.steps)
    trace = json.loads((tmp_path / "trace.json").read_text())
    tracks = {(event["pid"], event["tid"]) for event in trace if event["ph"] == "X"}
    assert {(1, 0), (1, 1), (2, 0), (3, 0)} <= tracks
    assert any(event["name"].startswith("optimizer step") for event in trace)
    small_cluster.remove_node(added[0])


@pytest.mark.usefixtures("impatient")
def test_a_phase_that_begins_on_a_cluster_without_room_waits_for_a_node(small_cluster: Cluster) -> None:
    """Two teachers on one CPU: what is missing is said, and the node that joins then is used."""
    said: list[str] = []

    def say(text: str) -> None:
        # On a slow machine the first may wait a moment too, for a CPU that is free.
        if text.startswith("teacher 1"):
            said.append(text)
            small_cluster.add_node(num_cpus=1)

    teachers = launcher("teacher", lambda options: TeacherClient(ScriptedTeacher.options(**options).remote(Script())))
    with launched(teachers, 2, message=say) as clients:
        assert len({ray.get(client.ready(), timeout=60) for client in clients}) == 2
    assert said[0].startswith("teacher 1 is waiting for resources: one teacher replica needs 1 CPU on one node; 0 CPU")
