"""The long-term half of one token: its loss and its slope in log q(y_t). Source: MiniLLM eq. 7; PPO's clip.

    clip_on policy    J = w max(-A omega, -A clip(omega))        w outside: at omega = 1 nothing is ever clipped
    clip_on mixture   J =   max(-A rho, -A clip(rho)),  rho = omega w
    clip_on none      J = -A omega w;  J = -A if A holds products of the current ratios already

w is 1 if long_term_weight is none. A and w are detached: dJ / dlog q(y_t) = -A w omega, and 0 where the clip is active.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_ray.objective.settings import ObjectiveSettings
from minillm_ray.objective.weights import Correction


@dataclass(frozen=True)
class LongTerm:
    """loss float [n], slope float [n] = d loss / d log q(y_t), clipped bool [n]."""

    loss: Tensor
    slope: Tensor
    clipped: Tensor


def long_term(advantage: Tensor, correction: Correction, settings: ObjectiveSettings) -> LongTerm:
    """The long-term term of each token, before the normaliser."""
    if settings.long_term_weight == "product":
        return LongTerm(-advantage, -advantage, torch.zeros_like(advantage, dtype=torch.bool))
    weighted = settings.long_term_weight == "token"
    weight_inside = weighted and settings.clip_on == "mixture"
    log_inside = correction.log_ratio + correction.log_weight if weight_inside else correction.log_ratio
    ratio = log_inside.exp()
    outside = correction.log_weight.exp() if weighted and not weight_inside else torch.ones_like(ratio)
    slope = -advantage * ratio * outside
    if settings.clip_on == "none":
        return LongTerm(slope, slope, torch.zeros_like(advantage, dtype=torch.bool))
    low, high = 1.0 - settings.clip_eps, 1.0 + settings.clip_eps
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    bound = -advantage * ratio.clamp(low, high) * outside
    return LongTerm(torch.where(clipped, bound, slope), torch.where(clipped, 0.0, slope), clipped)
