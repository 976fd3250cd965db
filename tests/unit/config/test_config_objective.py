"""Section `objective` is the objective's own switches, seen without torch."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from minillm_ray.config.objective import ObjectiveSection
from minillm_ray.objective.settings import CHOICES, PRESETS, RANGES, ObjectiveSettings

FIELDS = ObjectiveSection.model_fields


def test_the_section_has_every_switch_of_the_objective_and_no_other() -> None:
    """A switch that the file cannot set would be a switch that nobody has."""
    assert set(FIELDS) == set(ObjectiveSettings.__dataclass_fields__)


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_switch_has_the_same_choices_in_both(name: str) -> None:
    """In the same order; null besides, for the preset's value."""
    annotation = FIELDS[name].annotation
    literal = next((part for part in get_args(annotation) if get_args(part)), annotation)
    assert get_args(literal) == CHOICES[name]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_section_that_only_names_a_preset_leaves_every_other_switch_to_it(preset: str) -> None:
    """Null is handed on as "not given": a default here would silently change the recipe."""
    section = ObjectiveSection(preset=preset)  # type: ignore[arg-type]
    given = {name for name, value in section.model_dump().items() if value is not None}
    assert given == {"preset", "temperature", "logits_memory_mb"}
    assert section.temperature == PRESETS[preset]["temperature"]


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0, 1.5])
def test_a_switch_has_the_same_range_in_both(name: str, value: Any) -> None:
    """What the file accepts, the objective accepts, and the other way round: errors come from --dry-run already.

    But for lm_coef=0: in a file, leaving out data.plain_text is what turns the plain-text loss off.
    """
    in_range, _ = RANGES[name]
    if (name, value) == ("lm_coef", 0.0):
        in_range = (0.0).__lt__
    try:
        ObjectiveSection(**{name: value})
        accepted = True
    except ValidationError:
        accepted = False
    assert accepted == bool(in_range(value))
