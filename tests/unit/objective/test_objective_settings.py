"""The switches: presets as tabulated, refusals that explain, and each switch shown to matter."""

import pickle
from dataclasses import fields, replace

import pytest
import torch
from objective_bed import differentiate, random_batch

from minillm_ray.objective import ObjectiveSettings, minillm_loss, text_loss, workspace
from minillm_ray.objective.chunks import choose_chunking
from minillm_ray.objective.settings import CHOICES, PRESETS

TABLE = {
    "default": ("next", 1.0, "expected", "later", "none", 1.0, None, "none", "token", "policy", 0.0, "tokens_global"),
    "paper": ("next", 1.0, "sampled", "later", "none", 1.0, None, "token", "token", "mixture", 0.0, "sequences"),
    "official": (
        "current", 0.95, "sampled_frozen", "remaining", "all_slots", 0.5, 100.0,
        "none", "token", "mixture", 0.5, "tokens_microbatch",
    ),
    "exact": ("next", 1.0, "expected", "none", "none", 1.0, None, "prefix", "product", "none", 0.0, "sequences"),
}  # fmt: skip
ROWS = [
    *("return_start", "gamma", "later_reward", "return_norm", "whiten", "reward_scale", "reward_clip"),
    *("single_step_weight", "long_term_weight", "clip_on", "text_kd_ratio", "loss_norm"),
]


@pytest.mark.parametrize("preset", TABLE)
def test_presets_are_as_tabulated(preset):
    """Every switch of a preset, and the constructor and from_preset agree."""
    settings = ObjectiveSettings(preset=preset)
    assert tuple(getattr(settings, name) for name in ROWS) == TABLE[preset]
    assert (settings.alpha, settings.clip_eps, settings.lm_coef, settings.temperature) == (0.2, 0.2, 1.0, 1.0)
    assert settings == ObjectiveSettings.from_preset(preset)
    assert settings.changed_from_preset() == {}


def test_presets_set_every_switch():
    """A field without a preset value would keep its marker."""
    names = {field.name for field in fields(ObjectiveSettings)} - {"preset"}
    assert all(set(values) == names for values in PRESETS.values())


def test_a_switch_beside_a_preset_wins_and_is_reported():
    """`changed_from_preset` names what to log: the preset's value and the one in force; None is a value too."""
    settings = ObjectiveSettings.from_preset("official", gamma=1.0, reward_clip=None, alpha=0.2)
    assert (settings.gamma, settings.reward_clip, settings.return_start) == (1.0, None, "current")
    assert settings.changed_from_preset() == {"gamma": (0.95, 1.0), "reward_clip": (100.0, None)}


def test_settings_are_frozen_and_picklable():
    """They cross processes unchanged; `replace` keeps what the preset has set."""
    settings = ObjectiveSettings(preset="paper", gamma=0.9)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert replace(settings, alpha=0.1).clip_on == "mixture"
    with pytest.raises(AttributeError):
        settings.gamma = 0.5


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (
            {"preset": "papr"},
            "objective.preset is 'papr'; expected default | paper | official | exact. Did you mean paper?",
        ),
        ({"later_reward": "expectd"}, "objective.later_reward is 'expectd'; .* Did you mean expected?"),
        ({"alpha": 1.1}, "objective.alpha is 1.1; expected 0 <= alpha <= 1, the teacher's share of the draw"),
        ({"alpha": -0.1}, "objective.alpha is -0.1; expected 0 <= alpha <= 1, the teacher's share of the draw"),
        ({"alpha": True}, "objective.alpha is True; expected"),
        ({"gamma": "1"}, "objective.gamma is '1'; expected 0 <= gamma <= 1"),
        ({"gamma": float("nan")}, "objective.gamma is nan; expected"),
        ({"reward_scale": 0}, "objective.reward_scale is 0; expected a positive divisor"),
        ({"reward_clip": -1.0}, "objective.reward_clip is -1.0; expected a positive bound, or none"),
        ({"clip_eps": 0.0}, "objective.clip_eps is 0.0; .* clip_on=none turns the clip off"),
        ({"lm_coef": -1}, "objective.lm_coef is -1; expected 0 or more"),
        ({"text_kd_ratio": 1.5}, "objective.text_kd_ratio is 1.5; expected a share from 0 to 1"),
        ({"temperature": 0.0}, "objective.temperature is 0.0; expected the sampler's temperature, above 0"),
        ({"single_step": 1}, "objective.single_step is 1; expected true or false"),
        ({"single_step": False}, "objective.single_step=false leaves .* they are next and expected. Set return_start="),
        ({"single_step": False, "return_start": "current"}, "they are current and expected"),
        ({"logits_memory_mb": 0}, "objective.logits_memory_mb is 0; expected a whole number of at least 1"),
        ({"logits_memory_mb": None}, "objective.logits_memory_mb is None; expected a whole number"),
        ({"horizon": 2.5}, "objective.horizon is 2.5; expected a whole number of at least 1"),
        ({"return_norm": "horizon"}, "objective.return_norm=horizon counts response slots .* set it to"),
        ({"whiten": "all_slots"}, "objective.whiten=all_slots counts response slots .* set it to"),
        (
            {"clip_on": "mixture", "long_term_weight": "none"},
            "clip_on=mixture clips q/m, but .* set long_term_weight=token",
        ),
        ({"long_term_weight": "product"}, "long_term_weight=product with clip_on=policy: .* set clip_on=none"),
        ({"preset": "exact", "return_start": "current"}, "product with return_start=current: .* set return_start=next"),
        ({"preset": "exact", "whiten": "valid"}, "product with whiten=valid: .* set whiten=none"),
    ],
)
def test_a_bad_switch_is_refused_with_the_remedy(switches, message):
    """The name, the value, what was expected."""
    with pytest.raises(ValueError, match=message.replace("|", r"\|").replace("?", r"\?")):
        ObjectiveSettings(**switches)


def test_an_unknown_switch_is_refused_by_name():
    """from_preset names the nearest switch; the constructor knows no other names either."""
    with pytest.raises(ValueError, match=r"objective.gama is not a key. Did you mean gamma\? Keys here: alpha, gamma"):
        ObjectiveSettings.from_preset("default", gama=1.0)
    with pytest.raises(TypeError):
        ObjectiveSettings(gama=1.0)


@pytest.mark.parametrize("name", ["k1", "sampled"])
def test_a_sampled_log_ratio_as_loss_is_refused(name):
    """Its expected gradient ignores the teacher; the message says so and names the way to sampled rewards."""
    with pytest.raises(ValueError, match=r"expected gradient E\[grad log q\] = 0, whatever the teacher.*later_reward"):
        ObjectiveSettings(single_step_weight=name)


@pytest.mark.parametrize(("loss_norm", "share"), [("tokens_global", 12), ("sequences", 3), ("tokens_microbatch", 1)])
def test_normalizer_share_counts_what_the_loss_is_divided_by(loss_norm, share):
    """Added over micro-batches and ranks it is the global normaliser."""
    assert ObjectiveSettings(loss_norm=loss_norm).normalizer_share(12, 3) == share


BASE = {"horizon": 16}
COMPANY = {"single_step": {"return_start": "current", "later_reward": "sampled"}}
"""What a switch must not be set without."""
OTHERS = {
    "alpha": [0.5],
    "gamma": [0.5],
    "return_start": ["current"],
    "later_reward": ["sampled", "sampled_frozen"],
    "return_norm": ["none", "remaining", "horizon"],
    "whiten": ["valid", "all_slots"],
    "reward_scale": [0.5],
    "reward_clip": [0.1],
    "single_step": [False],
    "single_step_weight": ["token", "prefix"],
    "long_term_weight": ["none"],
    "clip_on": ["mixture", "none"],
    "clip_eps": [0.05],
    "loss_norm": ["sequences"],
    "temperature": [1.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OTHERS.items() for value in values])
def test_every_switch_changes_the_gradient(name, value):
    """No option is read and ignored."""
    batch = random_batch((1, 7, 3, 12, 16), recorded=(True, name != "alpha"))
    base = BASE | COMPANY.get(name, {})
    _, before = differentiate(minillm_loss, batch, ObjectiveSettings(**base))
    _, after = differentiate(minillm_loss, batch, ObjectiveSettings(**(base | {name: value})))
    assert float((after["hidden"] - before["hidden"]).abs().max()) > 1e-6


def test_every_switch_is_covered_by_a_test_that_it_matters():
    """The list above and the tests below name all switches and all choices."""
    elsewhere = {"preset", "horizon", "lm_coef", "text_kd_ratio", "logits_memory_mb"}
    assert {field.name for field in fields(ObjectiveSettings)} == set(OTHERS) | elsewhere
    assert all(
        set(OTHERS[name]) | {PRESETS["default"][name]} == set(choices)
        for name, choices in CHOICES.items()
        if name not in ("preset", "long_term_weight", "loss_norm")
    )


@pytest.mark.parametrize("switches", [{"return_norm": "horizon"}, {"whiten": "all_slots"}])
def test_horizon_changes_the_gradient_where_it_is_counted(switches):
    """A longer horizon divides returns by more, and adds zeros to the whitened slots."""
    batch = random_batch()
    _, before = differentiate(minillm_loss, batch, ObjectiveSettings(horizon=12, **switches))
    _, after = differentiate(minillm_loss, batch, ObjectiveSettings(horizon=40, **switches))
    assert float((after["hidden"] - before["hidden"]).abs().max()) > 1e-6


def test_product_weight_and_micro_batch_norm_change_the_gradient():
    """The two choices that need company: product without a clip, micro-batch norm with a share of several."""
    batch = random_batch()
    token, product = (
        differentiate(minillm_loss, batch, ObjectiveSettings(long_term_weight=weight, clip_on="none"))[1]["hidden"]
        for weight in ("token", "product")
    )
    assert float((token - product).abs().max()) > 1e-6
    one, two = (
        minillm_loss(*batch.arguments, ObjectiveSettings(loss_norm="tokens_microbatch"), normalizer=n).loss
        for n in (1, 2)
    )
    torch.testing.assert_close(one, 2 * two)


def test_text_switches_change_the_text_loss():
    """lm_coef scales it; text_kd_ratio moves it from cross-entropy towards the teacher."""
    batch = random_batch()
    teacher = {"teacher_hidden": batch.teacher_hidden, "teacher_head": batch.teacher_head}
    settings = ObjectiveSettings(preset="official", lm_coef=0.25)
    student = (batch.student_hidden, batch.student_head, batch.tokens)
    mixed = text_loss(*student, **teacher, kd_ratio=settings.text_kd_ratio, coef=settings.lm_coef)
    plain = text_loss(*student)
    expected = 0.25 * (0.5 * plain.loss + 0.5 * mixed.forward_kl.mean())
    torch.testing.assert_close(mixed.loss, expected)


def test_logits_memory_sets_the_chunk_length(monkeypatch):
    """Less memory, shorter chunks, the same loss."""
    chunks = {}

    def choose(**options):
        chosen = choose_chunking(**options)
        chunks[options["memory_mb"]] = chosen.chunk
        return chosen

    monkeypatch.setattr(workspace, "choose_chunking", choose)
    batch = random_batch((40, 24), vocab_size=30_000, dtype=torch.float32)
    losses = [minillm_loss(*batch.arguments, ObjectiveSettings(logits_memory_mb=mb)).loss for mb in (2, 9)]
    assert chunks[2] < chunks[9] < 64
    torch.testing.assert_close(losses[0], losses[1])
