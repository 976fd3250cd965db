"""Section `teacher`: the model to imitate, and how many replicas score the student's samples."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minillm_ray.config.base import Section


class TeacherSection(Section):
    """The frozen model p. Each replica is one Ray actor with one engine."""

    model: str
    """A local folder in Hugging Face format, a Hugging Face id, or `embedded:teacher` for the quick start's model."""
    replicas: int = Field(1, ge=1)
    """Replicas share the trajectories of a step. More of them shorten scoring, nothing else."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """`transformers` is for models that vLLM does not serve: one device, no prefix cache, slower."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share each layer of one replica. Raise it until the weights and a batch of hidden states fit."""
    pipeline_parallel: int = Field(1, ge=1)
    """Stages of layers, each on tensor_parallel GPUs, all of one node. For a number of GPUs that does not divide the
    model's attention heads, or with slow links between them."""
    quantization: str | None = None
    """vLLM's name of how the weights are quantised, as in fp8. Null: as the model's own folder says."""
    engine_arguments: dict[str, Any] = Field(default_factory=dict)
    """Further engine arguments of vLLM, as in {gpu_memory_utilization: 0.8}. Those that this section sets are refused.
    """
    probe_max_gb: float = Field(8.0, ge=0)
    """At the start one sequence goes through the whole scoring path. Where the weights take at most so many GB in
    float32 it is compared with transformers on the CPU, elsewhere with itself, which sees less. 0 is never."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and hidden states. bfloat16 halves the payload that travels to the learner."""
    payload: Literal["hidden", "topk", "sampled"] = "hidden"
    """What the learner is told of the teacher. `hidden`: states, so the divergence is exact. `topk`: its most probable
    tokens and the mass of the rest, approximate: a lower bound of the divergence. `sampled`: one number a token,
    unbiased but noisier; later rewards are then sampled. Held-out divergences are exact with each."""
    payload_top_k: int = Field(64, ge=1)
    """Tokens that `payload: topk` names at each position: 8 bytes each. More of them tighten the bound."""
    cpus: int = Field(1, ge=1)
    """Threads of one replica where there is no GPU."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of the key-value cache of one replica where there is no GPU."""

    @model_validator(mode="after")
    def _vllm_settings_need_vllm(self) -> "TeacherSection":
        if self.engine == "vllm":
            return self
        plain = TeacherSection(model=self.model)
        for name in ("tensor_parallel", "pipeline_parallel", "quantization", "engine_arguments"):
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but teacher.engine is transformers, which runs on one device. "
                    f"Remove teacher.{name}, or set teacher.engine=vllm"
                )
        return self
