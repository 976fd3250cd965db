"""A teacher replica as the pipeline calls it: references in, references out."""

from ray import ObjectRef

from minillm_ray.remote import ActorClient


class TeacherClient(ActorClient):
    """Of a TeacherActor."""

    def score(self, trajectory: ObjectRef, session: str | None, *, exact: bool) -> tuple[ObjectRef, ObjectRef]:
        """References to a ScoreReport and to the payload. session: in which the response was mixed, if it was.

        exact: the payload is hidden states, whatever the run trains on.
        """
        report, payload = self.handle.score.options(num_returns=2).remote(trajectory, session, exact)
        return report, payload

    def forget(self, session: str) -> None:
        """The response of this session will not come."""
        self.handle.forget.remote(session)
