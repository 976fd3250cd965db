"""Section `rollout`: the workers that sample from the student."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class RolloutSection(Section):
    """Each replica is one Ray actor with one vLLM engine in its process. Temperature is the objective's."""

    replicas: int = Field(1, ge=1)
    """Replicas share the prompts of a step."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one replica."""
    max_response_tokens: int = Field(256, ge=1)
    """A response that reaches it is trained as truncated: all its tokens count, and its return ends there."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Each model keeps its likeliest tokens up to this mass before the two are mixed. 1 samples from all of them."""
    top_k: int | None = Field(None, ge=1)
    """Each model keeps its k likeliest tokens, before top_p. null keeps all of them."""
    mix_scheme: Literal["propose_verify", "handoff"] = "propose_verify"
    """How the mixture is drawn, exactly in both. `propose_verify`: the student proposes a few dozen tokens at most, and
    the teacher corrects. `handoff`: the teacher draws its own tokens; simpler, many more requests."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the sampler's weights. The gap to the learner's own log-probabilities is in the metrics."""
    cpus: int = Field(1, ge=1)
    """Threads of one replica where there is no GPU."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory of the key-value cache of one replica where there is no GPU."""
