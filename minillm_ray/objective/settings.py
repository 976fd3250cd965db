"""Every switch of the objective, and the four presets that set them all.

A preset names a whole recipe. A switch given beside it wins, and `changed_from_preset` tells which were given:

    default   expected later rewards under the current q, mean over later tokens, w outside the clip
    paper     sampled later rewards, w on both halves and inside the clip (MiniLLM, arXiv 2306.08543)
    official  what the authors' code does: return from the current slot, gamma 0.95, whitening over padding
    exact     the unbiased gradient of the sequence-level KL(q || p): prefix weights, no length norm, no clip

Not here: how many prompts, which optimizer, how tokens are drawn. Nothing but the standard library is imported.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Preset = Literal["default", "paper", "official", "exact"]
ReturnStart = Literal["next", "current"]
LaterReward = Literal["expected", "sampled", "sampled_frozen"]
ReturnNorm = Literal["none", "later", "remaining", "horizon"]
Whiten = Literal["none", "valid", "all_slots"]
SingleStepWeight = Literal["none", "token", "prefix"]
LongTermWeight = Literal["none", "token", "product"]
ClipOn = Literal["policy", "mixture", "none"]
LossNorm = Literal["tokens_global", "sequences", "tokens_microbatch"]

DEFAULT: dict[str, Any] = {
    "alpha": 0.2,
    "gamma": 1.0,
    "return_start": "next",
    "later_reward": "expected",
    "return_norm": "later",
    "horizon": None,
    "whiten": "none",
    "reward_scale": 1.0,
    "reward_clip": None,
    "single_step": True,
    "single_step_weight": "none",
    "long_term_weight": "token",
    "clip_on": "policy",
    "clip_eps": 0.2,
    "loss_norm": "tokens_global",
    "lm_coef": 1.0,
    "text_kd_ratio": 0.0,
    "temperature": 1.0,
    "logits_memory_mb": 304,
}
PAPER: dict[str, Any] = {
    "later_reward": "sampled",
    "single_step_weight": "token",
    "clip_on": "mixture",
    "loss_norm": "sequences",
}
OFFICIAL: dict[str, Any] = {
    "gamma": 0.95,
    "return_start": "current",
    "later_reward": "sampled_frozen",
    "return_norm": "remaining",
    "horizon": 256,
    "whiten": "all_slots",
    "reward_scale": 0.5,
    "reward_clip": 100.0,
    "clip_on": "mixture",
    "loss_norm": "tokens_microbatch",
    "text_kd_ratio": 0.5,
}
EXACT: dict[str, Any] = {
    "return_norm": "none",
    "single_step_weight": "prefix",
    "long_term_weight": "product",
    "clip_on": "none",
    "loss_norm": "sequences",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "paper": DEFAULT | PAPER,
    "official": DEFAULT | OFFICIAL,
    "exact": DEFAULT | EXACT,
}

CHOICES: dict[str, tuple[str, ...]] = {
    "preset": get_args(Preset),
    "return_start": get_args(ReturnStart),
    "later_reward": get_args(LaterReward),
    "return_norm": get_args(ReturnNorm),
    "whiten": get_args(Whiten),
    "single_step_weight": get_args(SingleStepWeight),
    "long_term_weight": get_args(LongTermWeight),
    "clip_on": get_args(ClipOn),
    "loss_norm": get_args(LossNorm),
}

Number = Callable[[float], bool]
RANGES: dict[str, tuple[Number, str]] = {
    "alpha": (lambda v: 0 <= v <= 1, "0 <= alpha <= 1, the teacher's share of the draw"),
    "gamma": (lambda v: 0 <= v <= 1, "0 <= gamma <= 1; 1 does not discount"),
    "reward_scale": (lambda v: v > 0, "a positive divisor; 1 does not scale"),
    "reward_clip": (lambda v: v > 0, "a positive bound, or none"),
    "clip_eps": (lambda v: 0 < v < 1, "0 < clip_eps < 1; clip_on=none turns the clip off"),
    "lm_coef": (lambda v: v >= 0, "0 or more; 0 turns the plain-text loss off"),
    "text_kd_ratio": (lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    "temperature": (lambda v: v > 0, "the sampler's temperature, above 0"),
}
OPTIONAL = ("horizon", "reward_clip")


class _FromPreset:
    """Marks a switch that was not given. None cannot: it is a value (no horizon, no clip)."""

    def __repr__(self) -> str:
        return "FROM_PRESET"


FROM_PRESET: Any = _FromPreset()


@dataclass(frozen=True)
class ObjectiveSettings:
    """The switches of MiniLLM's objective. A field left out takes its value from `preset`.

    Raises ValueError on a value out of range, an unknown choice, or two switches that contradict each other.
    """

    preset: Preset = "default"

    alpha: float = FROM_PRESET
    """The teacher's share of m = alpha * p + (1 - alpha) * q_b, 0..1. Forms log m where none was recorded."""
    gamma: float = FROM_PRESET
    """Discount per later token, 0..1. 0 leaves the single-step half alone: biased, far less variance."""
    return_start: ReturnStart = FROM_PRESET
    """First reward in the return. `next` is the paper; `current` its authors' code, which counts a step twice."""
    later_reward: LaterReward = FROM_PRESET
    """A later slot's reward: -KL under the current q, log p - log q of its token, or log p - log q_b (frozen)."""
    return_norm: ReturnNorm = FROM_PRESET
    """Divide the return of slot t of n by: nothing, n-t-1 later slots, n-t remaining ones, or horizon-t-1."""
    horizon: int | None = FROM_PRESET
    """Response slots available. Needed by return_norm=horizon and whiten=all_slots; else None."""
    whiten: Whiten = FROM_PRESET
    """Give returns mean 0 and variance 1 over this call's tokens, or over all its slots with zeros as padding."""
    reward_scale: float = FROM_PRESET
    """Rewards are divided by it before they are clipped and summed. Positive."""
    reward_clip: float | None = FROM_PRESET
    """Bound on the size of a scaled reward. None: no bound."""
    single_step: bool = FROM_PRESET
    """The exact half. Without it the return must hold the token's own sampled reward: the policy gradient of eq. 2."""
    single_step_weight: SingleStepWeight = FROM_PRESET
    """Weight on KL_t: 1, w_t (same mean, more noise), or the product of current ratios q/m of the slots before t."""
    long_term_weight: LongTermWeight = FROM_PRESET
    """1, w_t = q_b/m on the whole return, or its own product of current ratios q/m on each later reward."""
    clip_on: ClipOn = FROM_PRESET
    """What PPO's clip sees: q/q_b with w outside (`policy`), q/m with w inside (`mixture`: dead zones), or nothing."""
    clip_eps: float = FROM_PRESET
    """Half width of the clip, 0 < clip_eps < 1."""
    loss_norm: LossNorm = FROM_PRESET
    """What the sum is divided by: trained tokens of the optimizer batch, its sequences, or this call's own tokens."""
    lm_coef: float = FROM_PRESET
    """Weight of the plain-text loss. 0 turns it off."""
    text_kd_ratio: float = FROM_PRESET
    """Share of forward KL to the teacher in the plain-text loss, 0..1; the rest is cross-entropy."""
    temperature: float = FROM_PRESET
    """Sampling temperature: q and p are softmax(z / temperature), here as in the sampler."""
    logits_memory_mb: int = FROM_PRESET
    """Upper bound on the logits in memory at one time, in MiB. On CPU the walk may take less, for the caches."""

    def __post_init__(self) -> None:
        _require_choice("preset", self.preset)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is FROM_PRESET:
                object.__setattr__(self, name, value)
        for name in CHOICES:
            _require_choice(name, getattr(self, name))
        self._check_ranges()
        self._check_combinations()

    @classmethod
    def from_preset(cls, preset: Preset, **overrides: Any) -> "ObjectiveSettings":
        """The preset with the given switches changed. ValueError names an unknown switch and the nearest known one."""
        known = [field.name for field in fields(cls) if field.name != "preset"]
        for name in overrides:
            if name not in known:
                raise ValueError(f"objective.{name} is not a key.{_suggest(name, known)} Keys here: {', '.join(known)}")
        return cls(preset=preset, **overrides)

    def changed_from_preset(self) -> dict[str, tuple[Any, Any]]:
        """Switch -> (the preset's value, the value in force), for those that differ."""
        expected = PRESETS[self.preset]
        return {n: (v, getattr(self, n)) for n, v in expected.items() if getattr(self, n) != v}

    def normalizer_share(self, num_tokens: int, num_sequences: int) -> int:
        """This micro-batch's share of `normalizer`: add the shares over micro-batches and ranks.

        Trained tokens, sequences, or 1 (`tokens_microbatch` is a mean of means) according to `loss_norm`.
        """
        return {"tokens_global": num_tokens, "sequences": num_sequences, "tokens_microbatch": 1}[self.loss_norm]

    def _check_ranges(self) -> None:
        for name, (in_range, expected) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not in_range(value):
                raise ValueError(f"objective.{name} is {value!r}; expected {expected}")
        if not isinstance(self.single_step, bool):
            raise ValueError(f"objective.single_step is {self.single_step!r}; expected true or false")
        for name in ("horizon", "logits_memory_mb"):
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"objective.{name} is {value!r}; expected a whole number of at least 1")

    def _check_combinations(self) -> None:
        if not self.single_step and (self.return_start == "next" or self.later_reward == "expected"):
            raise ValueError(
                "objective.single_step=false leaves a token's own reward to its return, which has it with "
                f"return_start=current and a sampled later_reward; they are {self.return_start} and "
                f"{self.later_reward}. Set return_start=current and later_reward=sampled, or single_step=true"
            )
        if self.horizon is None and (self.return_norm == "horizon" or self.whiten == "all_slots"):
            switch = "return_norm=horizon" if self.return_norm == "horizon" else "whiten=all_slots"
            raise ValueError(
                f"objective.{switch} counts response slots up to objective.horizon, which is not set; "
                "set it to the largest number of new tokens"
            )
        if self.clip_on == "mixture" and self.long_term_weight != "token":
            raise ValueError(
                f"objective.clip_on=mixture clips q/m, but long_term_weight={self.long_term_weight} leaves m out; "
                "set long_term_weight=token, or clip_on=policy"
            )
        if self.long_term_weight != "product":
            return
        conflicts = {
            "clip_on": ("none", "the products hold q's ratios already"),
            "return_start": ("next", "the slot's own reward is in the single-step half"),
            "whiten": ("none", "a shifted return is no longer weighted reward by reward"),
        }
        for name, (required, reason) in conflicts.items():
            if getattr(self, name) != required:
                raise ValueError(
                    f"objective.long_term_weight=product with {name}={getattr(self, name)}: {reason}; "
                    f"set {name}={required}, or long_term_weight=token"
                )


def _require_choice(name: str, value: object) -> None:
    if value in CHOICES[name]:
        return
    if name == "single_step_weight" and value in ("k1", "sampled"):
        raise ValueError(
            f"objective.single_step_weight={value}: a sampled log q(y) - log p(y) back-propagated as a loss has the "
            "expected gradient E[grad log q] = 0, whatever the teacher. The single-step half is the full-vocabulary "
            f"KL: choose {' | '.join(CHOICES[name])}; for sampled rewards in the return set later_reward=sampled"
        )
    hint = _suggest(str(value), CHOICES[name])
    raise ValueError(f"objective.{name} is {value!r}; expected {' | '.join(CHOICES[name])}.{hint}")


def _suggest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""
