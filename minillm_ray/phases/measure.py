"""The rows of the closing table: how a model answers held-out prompts, and how far it is from the teacher there."""

from collections.abc import Callable, Sequence
from typing import Any

from minillm_ray.config.errors import RunError
from minillm_ray.evaluation.held_out import HeldOutPrompts, HeldOutScores
from minillm_ray.phases.launchers import ActorLauncher
from minillm_ray.phases.roles import launched
from minillm_ray.pipeline.crew import Crew
from minillm_ray.pipeline.protocols import Task
from minillm_ray.remote import get
from minillm_ray.telemetry.reductions import Mean

_ATTEMPTS = 3


def measure_student(crew: Crew, held_out: HeldOutPrompts) -> HeldOutScores:
    """The student's own responses and its exact divergence to the teacher along them, whatever dies meanwhile."""
    trajectories: list[Any] = []
    parts: list[Mean] = []
    for batch in held_out.batches():
        measured = None
        while measured is None:
            responses = crew.collect([Task("held_out", index, 0, mixed=False) for index in batch])
            found = [response.trajectory for response in responses]
            payloads = [response.payload for response in responses]
            measured = _divergence(crew, found, payloads)
        parts.append(measured)
        trajectories += found
    divergence = Mean(sum(part.sum for part in parts), sum(part.count for part in parts))
    return held_out.scores(trajectories, divergence)


def measure_teacher(
    launcher: ActorLauncher,
    replicas: int,
    held_out: HeldOutPrompts,
    *,
    startup_seconds: float,
    call_seconds: float,
    message: Callable[[str], None],
) -> HeldOutScores:
    """The teacher's own responses, drawn by actors of its own; its divergence to itself is 0.

    Nobody watches these actors: where one dies, all begin again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with launched(launcher, replicas, message=message) as clients:
                get(
                    [client.ready() for client in clients],
                    timeout_seconds=startup_seconds,
                    work="teacher: loading the sampling engine",
                )
                trajectories = _draw(clients, held_out, call_seconds)
                return held_out.scores(trajectories, Mean(0.0, 1.0))
        except RunError as error:
            if attempt == _ATTEMPTS:
                raise
            message(f"the teacher's answers are drawn again: {error}")
    raise AssertionError


def _draw(clients: Sequence[Any], held_out: HeldOutPrompts, call_seconds: float) -> list[Any]:
    trajectories = []
    for batch in held_out.batches():
        pairs = [
            clients[place % len(clients)].respond(
                Task("held_out", index, 0, mixed=False), teacher=None, session="", together=None
            )
            for place, index in enumerate(batch)
        ]
        get([counts for counts, _ in pairs], timeout_seconds=call_seconds, work="teacher: answering prompts")
        trajectories += [trajectory for _, trajectory in pairs]
    return trajectories


def _divergence(crew: Crew, trajectories: Sequence[Any], payloads: Sequence[Any]) -> Mean | None:
    """None where some of them went with a node."""
    parts = crew.ask_learner(lambda learner: learner.divergence(trajectories, payloads), "measuring the divergence")
    if not all(isinstance(part, Mean) for part in parts):
        return None
    return Mean(sum(part.sum for part in parts), sum(part.count for part in parts))
