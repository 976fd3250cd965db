"""A rollout replica as the pipeline calls it: references in, references out."""

from collections.abc import Sequence
from typing import Any

from ray import ObjectRef

from minillm_ray.engines.loop import Together
from minillm_ray.remote import ActorClient


class RolloutClient(ActorClient):
    """Of a RolloutActor."""

    def respond(
        self, task: Any, *, teacher: Any, session: str, together: tuple[str, int, int] | None
    ) -> tuple[ObjectRef, ObjectRef]:
        """References to what a response cost and to its trajectory.

        task: split, prompt_index, draw (pipeline.protocols.Task). teacher: the client of the replica to mix with, None
        for none. together: key, size and place of responses that enter the engine in one go.
        """
        counts, trajectory = self.handle.respond.options(num_returns=2).remote(
            task.split,
            task.prompt_index,
            task.draw,
            None if teacher is None else teacher.handle,
            session,
            None if together is None else Together(*together),
        )
        return counts, trajectory

    def pull(self, publication: Any) -> ObjectRef:
        """The version, once it is loaded. publication: manifest and buffers (pipeline.protocols.Publication)."""
        return self.handle.pull.remote(publication.manifest, *publication.buffers)

    def abandon(self, sessions: Sequence[str]) -> None:
        """Have it drop the responses of these sessions."""
        self.handle.abandon.remote(list(sessions))
