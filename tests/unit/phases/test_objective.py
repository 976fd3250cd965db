"""From the run file to the objective's settings: what the teacher's payload decides, and what it rules out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minillm_ray.config import InputError, load_config
from minillm_ray.objective import ObjectiveSettings
from minillm_ray.objective.settings import PRESETS
from minillm_ray.phases.objective import objective_settings, payload_notice

WriteRun = Callable[..., Path]


def settings_of(path: Path, *overrides: str) -> ObjectiveSettings:
    return objective_settings(load_config(path, overrides))


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        settings_of(path, *overrides)
    return str(caught.value)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("payload", ["hidden", "topk", "sampled"])
def test_only_a_sampled_payload_changes_the_presets_later_reward(
    preset: str, payload: str, write_run: WriteRun
) -> None:
    """Expected rewards become sampled ones, since there is no divergence to expect; others stay."""
    found = settings_of(write_run(), f"objective.preset={preset}", f"teacher.payload={payload}").later_reward
    expected = PRESETS[preset]["later_reward"]
    assert found == ("sampled" if payload == "sampled" and expected == "expected" else expected)


def test_a_given_later_reward_stands_beside_a_sampled_payload(write_run: WriteRun) -> None:
    """Null alone is resolved."""
    found = settings_of(write_run(), "teacher.payload=sampled", "objective.later_reward=sampled_frozen")
    assert found.later_reward == "sampled_frozen"


def test_expected_rewards_asked_for_beside_a_sampled_payload_are_refused(write_run: WriteRun) -> None:
    """Both values and both ways out, in one line."""
    message = refusal(write_run(), "teacher.payload=sampled", "objective.later_reward=expected")
    assert "objective.later_reward is 'expected' and teacher.payload 'sampled'" in message
    assert "Set objective.later_reward=sampled, or teacher.payload=hidden or topk" in message
    assert "\n" not in message


@pytest.mark.parametrize("payload", ["topk", "sampled"])
def test_text_that_leans_on_the_teacher_needs_its_hidden_states(payload: str, write_run: WriteRun) -> None:
    """Where there is text; the ratio alone does nothing."""
    path = write_run()
    overrides = (f"teacher.payload={payload}", "objective.text_kd_ratio=0.5")
    message = refusal(path, *overrides, "data.plain_text=text.txt")
    assert f"objective.text_kd_ratio is 0.5 and teacher.payload '{payload}'" in message
    assert "Set objective.text_kd_ratio=0, or teacher.payload=hidden" in message
    assert settings_of(path, *overrides).text_kd_ratio == 0.5
    assert settings_of(path, "objective.text_kd_ratio=0.5", "data.plain_text=text.txt").text_kd_ratio == 0.5


def test_a_payload_that_is_not_exact_says_so(write_run: WriteRun) -> None:
    """One line each; nothing to say of hidden states."""
    path = write_run()
    top_k = payload_notice(load_config(path, ["teacher.payload=topk", "teacher.payload_top_k=20"]))
    sampled = payload_notice(load_config(path, ["teacher.payload=sampled"]))
    assert top_k is not None
    assert sampled is not None
    assert "approximate: the teacher's 20 most probable tokens" in top_k
    assert "lower bounds" in top_k
    assert "unbiased but noisier" in sampled
    assert "\n" not in top_k + sampled
    assert payload_notice(load_config(path)) is None


@pytest.mark.parametrize("value", ["teacher.payload=logits", "teacher.payload_top_k=0"])
def test_a_payload_that_does_not_exist_is_refused(value: str, write_run: WriteRun) -> None:
    """When the file is read."""
    assert value.partition("=")[0] in refusal(write_run(), value)
