"""From config section `objective` to the objective's own settings."""

from minillm_ray.config.errors import InputError
from minillm_ray.config.run import RunConfig
from minillm_ray.objective import ObjectiveSettings


def objective_settings(config: RunConfig) -> ObjectiveSettings:
    """The objective that `config` asks for. Raises InputError for values that contradict each other."""
    section = config.objective
    given = {name: value for name, value in section.model_dump(exclude={"preset"}).items() if value is not None}
    if section.preset == "official" or section.return_norm == "horizon" or section.whiten == "all_slots":
        given.setdefault("horizon", config.rollout.max_response_tokens)
    try:
        settings = ObjectiveSettings.from_preset(section.preset, **given)
    except ValueError as error:
        raise InputError(str(error)) from None
    if settings.alpha > 0:
        raise InputError(
            f"objective.alpha is {settings.alpha}; expected 0: responses are drawn from the student alone. "
            f"Set objective.alpha=0"
        )
    return settings
