"""Replicas come and go while the run goes on: as somebody asks, or with the node they are on."""

from collections.abc import Callable
from typing import Any

from ray.cluster_utils import Cluster
from scripted.actors import Script, ScriptedRollout
from scripted.crew import ScriptedRun

from minillm_ray.config.placement import RolePlacement
from minillm_ray.phases.launchers import ActorLauncher
from minillm_ray.rollout.client import RolloutClient

MakeRun = Callable[..., ScriptedRun]


def test_a_run_grows_and_shrinks_while_it_goes_on(scripted_run: MakeRun) -> None:
    """From two and two to four and three, and down to one of each; a draining replica ends what it has in hand."""
    wanted = [(4, {"rollout": 4, "teacher": 3}), (7, {"rollout": 1, "teacher": 1})]  # once so many serve
    run = scripted_run(plan={"rounds": 60, "max_staleness": 2, "mixed": True}, every_steps=20)

    def requests() -> dict[str, int]:
        num_serving = len(run.crew.rollout.serving) + len(run.crew.teacher.serving)
        return wanted.pop(0)[1] if wanted and num_serving >= wanted[0][0] else {}

    run.requests = requests
    assert run.run()
    run.check()
    assert [len(run.told(f"rollout_{kind}")) for kind in ("ready", "draining", "drained")] == [4, 3, 3]
    assert [len(run.told(f"teacher_{kind}")) for kind in ("ready", "draining", "drained")] == [3, 2, 2]


def test_a_node_that_goes_takes_its_responses_along_and_the_next_one_is_used_when_it_comes(
    scripted_run: MakeRun, cluster: Cluster
) -> None:
    """All samplers were there, and finished responses too: drawn again, on the node that comes, each trained once."""
    node = {"num_cpus": 2, "node_ip_address": cluster.head_node.node_ip_address}
    nodes = [cluster.add_node(**node)]
    large = Script(tokens=40_000, token_seconds=1e-6, score_seconds=0.1, step_seconds=0.05)  # kept where it was drawn

    def create(options: dict[str, Any], number: int) -> RolloutClient:
        return RolloutClient(ScriptedRollout.options(**options).remote(large))  # type: ignore[attr-defined]

    placement = RolePlacement("rollout", "rollout.replicas", replicas=2, cpus=3, gpus=0)
    run = scripted_run(script=large, launchers={"rollout": ActorLauncher(placement, {}, create)})

    def on_turn(run: ScriptedRun) -> None:
        if len(nodes) == 1 and len(run.steps) >= 4:
            cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(None)
        elif len(nodes) == 2 and len(run.told("rollout_lost")) == 2:
            nodes.append(cluster.add_node(**node))

    run.on_turn = on_turn
    assert run.run()
    run.check()
    numbers = [fields["number"] for fields in run.told("rollout_ready")]
    assert sorted(numbers[:2]) == [0, 1]
    assert numbers[2:], "both are begun again, and one may be too late to see the run's end"
    cluster.remove_node(nodes[2])
