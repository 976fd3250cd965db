"""From config sections `objective` and `teacher` to the objective's own settings."""

from minillm_ray.config.errors import InputError
from minillm_ray.config.run import RunConfig
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.objective.settings import PRESETS


def objective_settings(config: RunConfig) -> ObjectiveSettings:
    """The objective that `config` asks for. Raises InputError for values that contradict each other."""
    section = config.objective
    given = {name: value for name, value in section.model_dump(exclude={"preset"}).items() if value is not None}
    if section.preset == "official" or section.return_norm == "horizon" or section.whiten == "all_slots":
        given.setdefault("horizon", config.rollout.max_response_tokens)
    if config.teacher.payload == "sampled" and PRESETS[section.preset]["later_reward"] == "expected":
        given.setdefault("later_reward", "sampled")
    try:
        settings = ObjectiveSettings.from_preset(section.preset, **given)
    except ValueError as error:
        raise InputError(str(error)) from None
    _check_payload(config, settings)
    return settings


def payload_notice(config: RunConfig) -> str | None:
    """What a run should say of a payload that is not exact, in one line. None where there is nothing to say."""
    if config.teacher.payload == "topk":
        return (
            f"teacher.payload=topk is approximate: the teacher's {config.teacher.payload_top_k} most probable tokens, "
            "and all others as one bucket. Divergences in training are lower bounds; held-out ones are exact"
        )
    if config.teacher.payload == "sampled":
        return (
            "teacher.payload=sampled is unbiased but noisier: the single-step gradient and the divergences in training "
            "are estimated from the sampled token alone; held-out divergences are exact"
        )
    return None


def _check_payload(config: RunConfig, settings: ObjectiveSettings) -> None:
    payload = config.teacher.payload
    if payload == "sampled" and settings.later_reward == "expected":
        raise InputError(
            "objective.later_reward is 'expected' and teacher.payload 'sampled', which has no divergence at a later "
            "state; expected sampled rewards. Set objective.later_reward=sampled, or teacher.payload=hidden or topk"
        )
    if payload != "hidden" and settings.text_kd_ratio > 0 and config.data.plain_text is not None:
        raise InputError(
            f"objective.text_kd_ratio is {settings.text_kd_ratio} and teacher.payload {payload!r}; divergence to the "
            f"teacher on plain text needs its hidden states. Set objective.text_kd_ratio=0, or teacher.payload=hidden"
        )
