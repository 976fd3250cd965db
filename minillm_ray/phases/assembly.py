"""A crew put together as a run's configuration says: one supervised set of replicas for each role."""

from collections.abc import Iterator
from contextlib import contextmanager

from minillm_ray.learner.client import DistillationRanks
from minillm_ray.phases.crew_watch import CrewWatch
from minillm_ray.phases.launchers import ActorLauncher
from minillm_ray.phases.run_context import RunContext
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.learner_ranks import LearnerRanks
from minillm_ray.pipeline.reactor import Reactor
from minillm_ray.pipeline.replicas import ReplicaSet, Supervision


@contextmanager
def assembled(context: RunContext, launchers: dict[str, ActorLauncher]) -> Iterator[tuple[Crew, CrewWatch]]:
    """A crew that ends with the block, and who watches it. launchers: of rollout, teacher and learner.

    No replica exists yet; a role that is never scaled has none.
    """
    watch = CrewWatch(context.config.run_dir / "trace.json", context.status, write_event=context.events.write)
    pipeline = context.config.pipeline
    reactor = Reactor()
    supervision = Supervision(
        startup_seconds=pipeline.startup_timeout_seconds,
        heartbeat_seconds=pipeline.heartbeat_timeout_seconds,
        progress_seconds=pipeline.call_timeout_seconds,
        max_restarts_per_hour=pipeline.max_restarts_per_hour,
    )
    sets = {
        role: ReplicaSet(
            role,
            launcher,
            reactor,
            supervision,
            write_event=watch.event,
            message=context.console.message,
        )
        for role, launcher in launchers.items()
    }
    learner = LearnerRanks(
        sets["learner"],
        lambda clients: DistillationRanks(
            clients, startup_seconds=pipeline.startup_timeout_seconds, call_seconds=pipeline.call_timeout_seconds
        ),
        startup_seconds=pipeline.startup_timeout_seconds,
    )
    crew = Crew(
        reactor,
        sets["rollout"],
        sets["teacher"],
        sets["learner"],
        learner,
        call_seconds=pipeline.call_timeout_seconds,
        requests=context.scale_requests,
        note_activity=watch,
    )
    try:
        yield crew, watch
    finally:
        crew.stop()
        watch.close()
