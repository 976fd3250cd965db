"""Section `objective`: what the student is trained on."""

from typing import Literal

from pydantic import Field

from minillm_ray.config.base import Section


class ObjectiveSection(Section):
    """The exact single-step half and the long-term half. A switch left at null takes the preset's value."""

    preset: Literal["default", "paper", "official", "exact"] = "default"
    """`default`: expected later rewards, lowest variance. `paper`: its text. `official`: its authors' code.
    `exact`: unbiased for the sequence-level divergence, without length normalisation."""
    alpha: float | None = Field(None, ge=0.0, le=1.0)
    """The teacher's share of the sampling mixture. 0 samples from the student alone, 1 from the teacher alone."""
    gamma: float | None = Field(None, ge=0.0, le=1.0)
    """Discount per later token. 0 leaves the exact half alone: biased, far less variance."""
    return_start: Literal["next", "current"] | None = None
    """First reward in the return. "next" is the paper; "current" its authors' code, which counts a step twice."""
    later_reward: Literal["expected", "sampled", "sampled_frozen"] | None = None
    """Later rewards: minus the exact divergence at each state, the sampled log-ratio, or that ratio at the rollout.
    `teacher.payload: sampled` has no divergence at a state: null is then `sampled`."""
    return_norm: Literal["none", "later", "remaining", "horizon"] | None = None
    """What a return is divided by. Without it the student learns to stop early."""
    horizon: int | None = Field(None, ge=1)
    """Response slots that `return_norm: horizon` counts; null for `rollout.max_response_tokens`."""
    whiten: Literal["none", "valid", "all_slots"] | None = None
    """Centre and scale the returns over a batch; costs one more product with each head."""
    reward_scale: float | None = Field(None, gt=0.0)
    """Rewards are divided by it, sampled and expected ones."""
    reward_clip: float | None = Field(None, gt=0.0)
    """Rewards are clipped to plus and minus this, after scaling."""
    single_step: bool | None = None
    """The exact half. false is the paper's ablation: it needs `return_start: current`, sampled later rewards, and
    `return_norm: remaining` where returns are divided."""
    single_step_weight: Literal["none", "token", "prefix"] | None = None
    """Importance weight of the exact half."""
    long_term_weight: Literal["none", "token", "product"] | None = None
    """Importance weight of the long-term half."""
    clip_on: Literal["policy", "mixture", "none"] | None = None
    """Which ratio is clipped: q/q_b, q/m, or none."""
    clip_eps: float | None = Field(None, gt=0.0, lt=1.0)
    """Half-width of the clip interval."""
    loss_norm: Literal["tokens_global", "sequences", "tokens_microbatch"] | None = None
    """What the summed loss is divided by."""
    lm_coef: float | None = Field(None, gt=0.0)
    """Weight of the plain-text loss; it counts where `data.plain_text` is given."""
    text_kd_ratio: float | None = Field(None, ge=0.0, le=1.0)
    """Share of forward divergence to the teacher in the plain-text loss; the rest is cross-entropy."""
    temperature: float = Field(1.0, gt=0.0)
    """Of sampling, of both models and of every log-probability."""
    logits_memory_mb: int = Field(512, ge=1)
    """Upper bound of the logits that are in memory at once."""
