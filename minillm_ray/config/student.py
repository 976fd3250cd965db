"""Section `student`: the model that is trained."""

from minillm_ray.config.base import Section


class StudentSection(Section):
    """The model that is trained and published to the rollout workers."""

    model: str
    """A local folder in Hugging Face format, a Hugging Face id, or `embedded:student` for the quick start's model."""
