"""Section `teacher`: the model to imitate, and how many replicas score the student's samples."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class TeacherSection(Section):
    """The frozen model p. Each replica is one Ray actor with one vLLM pooling engine."""

    model: str
    """A local folder in Hugging Face format, a Hugging Face id, or `embedded:teacher` for the quick start's model."""
    replicas: int = Field(1, ge=1)
    """Replicas share the trajectories of a step. More of them shorten scoring, nothing else."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one replica. Raise it until the weights and a batch of hidden states fit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and hidden states. bfloat16 halves the payload that travels to the learner."""
    cpus: int = Field(1, ge=1)
    """Threads of one replica where there is no GPU."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of the key-value cache of one replica where there is no GPU."""
