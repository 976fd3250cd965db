"""The Ray actor of a teacher replica: builds a TeacherReplica and forwards to it."""

import asyncio
from pathlib import Path

import ray

from minillm_ray.data.trajectory import Payload, Trajectory
from minillm_ray.engines.loop import Together
from minillm_ray.mixture.exchange import Proposal, Verdict
from minillm_ray.remote import Beat
from minillm_ray.teacher.replica import TeacherFacts, TeacherReplica, TeacherSpec
from minillm_ray.teacher.scorer import ScoreReport, TeacherReport
from minillm_ray.telemetry.actor_logs import redirect_output


@ray.remote(concurrency_groups={"beat": 1})
class TeacherActor:
    """Process boundary of one teacher replica. Its methods are coroutines: any number of them wait side by side."""

    def __init__(self, spec: TeacherSpec, *, log_file: Path) -> None:
        redirect_output(log_file)
        self._replica = TeacherReplica(spec)

    async def ready(self) -> TeacherFacts:
        """Answers once the engine is loaded and probed."""
        return await self._replica.ready()

    async def extend(self, proposals: list[tuple[str, Proposal]]) -> list[Verdict]:
        """A verdict on each, in order; a proposal comes with the name of its session."""
        return await asyncio.gather(*(self._replica.extend(session, proposal) for session, proposal in proposals))

    @ray.method(num_returns=2)
    async def score(
        self,
        trajectory: Trajectory,
        session: str | None = None,
        exact: bool = False,
        together: Together | None = None,
    ) -> tuple[ScoreReport, Payload]:
        """Two returns: a few numbers for the driver, and the payload for the learner; hidden states where `exact`."""
        return await self._replica.score(trajectory, session, exact=exact, together=together)

    async def forget(self, session: str) -> None:
        self._replica.forget(session)

    async def report(self) -> TeacherReport:
        return self._replica.report()

    @ray.method(concurrency_group="beat")
    async def ping(self) -> Beat:
        """Answers also while the engine works, which has a thread of its own."""
        return Beat(self._replica.seconds_since_progress, self._replica.busy_seconds)
