"""Section `evaluation`: the closing table of a run."""

from pydantic import Field

from minillm_ray.config.base import Section


class EvaluationSection(Section):
    """Teacher, student before and student after the last phase, on held-out prompts."""

    prompts: int = Field(128, ge=1)
    """The first so many held-out prompts are answered, one sampled response each."""
    batch_size: int = Field(64, ge=1)
    """Responses that are scored at once; it bounds the hidden states held in the object store."""
    teacher_row: bool = True
    """Let the teacher answer too. It samples with engines of its own, which take the place of those that score: false
    saves their start."""
