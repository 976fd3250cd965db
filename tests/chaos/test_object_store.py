"""Payloads are freed when they are trained: what the object store holds does not grow with the run."""

from collections.abc import Callable

from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.cluster_utils import Cluster
from scripted.actors import Script
from scripted.crew import ScriptedRun

PAYLOAD_BYTES = 1_000_000


def test_two_hundred_steps_leave_the_object_store_as_it_was(
    scripted_run: Callable[..., ScriptedRun], cluster: Cluster
) -> None:
    """Payloads of 1 MB each: never more there than can be under way, and the last steps hold no more than the first."""
    run = scripted_run(
        plan={"rollouts": 4, "minibatch": 2, "rounds": 100},
        script=Script(payload_bytes=PAYLOAD_BYTES),
        every_steps=50,
    )

    def bytes_used() -> int:
        return int(get_memory_info_reply(get_state_from_address(cluster.address)).store_stats.object_store_bytes_used)

    before, used = bytes_used(), []

    def on_turn(run: ScriptedRun) -> None:
        if len(run.steps) > len(used):
            used.append(bytes_used() - before)

    run.on_turn = on_turn
    assert run.run()
    run.check()
    assert len(run.steps) == 200
    most = 3 * run.plan.rollouts * PAYLOAD_BYTES  # two rounds under way, and one that is being freed
    assert PAYLOAD_BYTES < max(used) <= most
    assert max(used[-50:]) <= max(used[:50]) + run.plan.rollouts * PAYLOAD_BYTES
