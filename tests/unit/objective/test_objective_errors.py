"""Input that cannot be trained on: a ValueError with the argument, the place and the remedy, before any product."""

from dataclasses import replace

import pytest
import torch
from objective_bed import random_batch

from minillm_ray.objective import (
    Head,
    ObjectiveSettings,
    minillm_loss,
    minillm_loss_dense,
    mixture_log_weight,
    term_gradients,
    text_loss,
    text_loss_dense,
)

BATCH = random_batch((3, 4), vocab_size=6, dtype=torch.float32)


def with_value(tensor: torch.Tensor, place, value) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


CASES = {
    "student_rows": (
        {"student_hidden": BATCH.student_hidden[:5]},
        r"student_hidden has shape \[5, 5\]; expected \[7, d\], one row for each entry of tokens",
    ),
    "teacher_rows": (
        {"teacher_hidden": BATCH.teacher_hidden.unsqueeze(0)},
        r"teacher_hidden has shape \[1, 7, 6\]; expected \[7, d\]",
    ),
    "student_width": ({"student_head": Head(torch.randn(6, 4))}, r"student_head has shape \[6, 4\]; expected \[V, 5\]"),
    "teacher_width": ({"teacher_head": Head(torch.randn(6, 5))}, r"teacher_head has shape \[6, 5\]; expected \[V, 6\]"),
    "bias_rows": (
        {"student_head": Head(BATCH.student_head.weight, torch.randn(5))},
        r"student_head.bias has shape \[5\]; expected \[6\]",
    ),
    "head_dtype": (
        {"student_head": Head(BATCH.student_head.weight.bfloat16())},
        "student_head has dtype torch.bfloat16, student_hidden has torch.float32; cast one to the other",
    ),
    "bias_dtype": (
        {"student_head": Head(BATCH.student_head.weight, torch.zeros(6).double())},
        "student_head.bias has dtype torch.float64, student_hidden has torch.float32; cast",
    ),
    "hidden_dtype": (
        {"teacher_hidden": BATCH.teacher_hidden.long(), "teacher_head": Head(BATCH.teacher_head.weight.long())},
        "teacher_hidden has dtype torch.int64; expected float32, bfloat16, float16 or float64",
    ),
    "vocabulary_rows": (
        {"student_head": Head(torch.randn(8, 5))},
        r"the heads have student_head 8, teacher_head 6 rows; .* Head\(weight, vocab_size=<size of the tokenizer>\)",
    ),
    "vocabulary_sizes": (
        {
            "student_head": Head(BATCH.student_head.weight, vocab_size=5),
            "teacher_head": Head(BATCH.teacher_head.weight, vocab_size=6),
        },
        "vocab_size differs: student_head 5, teacher_head 6; the models must share one tokenizer",
    ),
    "vocabulary_too_large": (
        {"student_head": Head(torch.randn(8, 5), vocab_size=8)},
        "vocab_size is 8 but teacher_head has 6 rows; give the size of the tokenizer",
    ),
    "token_above": (
        {"tokens": with_value(BATCH.tokens, 4, 6)},
        r"tokens\[4\] is 6, outside the vocabulary of 6; mask padding away .* share the tokenizer",
    ),
    "token_below": ({"tokens": with_value(BATCH.tokens, 2, -100)}, r"tokens\[2\] is -100, outside the vocabulary of 6"),
    "token_dtype": (
        {"tokens": BATCH.tokens.float()},
        r"tokens has shape \[7\] and dtype torch.float32; expected one dim",
    ),
    "token_shape": (
        {"tokens": BATCH.tokens.view(1, 7)},
        r"tokens has shape \[1, 7\] .* expected one dimension of int64",
    ),
    "bounds_start": (
        {"cu_seqlens": torch.tensor([1, 7])},
        r"cu_seqlens starts with \[1\]; expected \[0, end of sequence 0, ..., 7\]",
    ),
    "bounds_empty": ({"cu_seqlens": torch.zeros(0, dtype=torch.int64)}, r"cu_seqlens starts with \[\]; expected \[0"),
    "bounds_fall": (
        {"cu_seqlens": torch.tensor([0, 5, 3, 7])},
        r"cu_seqlens\[2\] is 3, not above cu_seqlens\[1\] = 5",
    ),
    "bounds_repeat": (
        {"cu_seqlens": torch.tensor([0, 3, 3, 7])},
        r"cu_seqlens\[2\] is 3, not above cu_seqlens\[1\] = 3; leave out a sequence without trained tokens",
    ),
    "bounds_end": (
        {"cu_seqlens": torch.tensor([0, 3, 8])},
        "cu_seqlens ends at 8 but tokens has 7 entries; it must be the running sum of the response lengths",
    ),
    "bounds_dtype": (
        {"cu_seqlens": torch.tensor([0.0, 7.0])},
        "cu_seqlens has shape .* expected one dimension of int64",
    ),
    "student_nan": (
        {"student_hidden": with_value(BATCH.student_hidden, (3, 1), float("nan"))},
        r"student_hidden\[3, 1\] is nan; leave the sample out of the batch, or look for an overflow",
    ),
    "teacher_inf": (
        {"teacher_hidden": with_value(BATCH.teacher_hidden, (6, 5), float("inf"))},
        r"teacher_hidden\[6, 5\] is inf; leave the sample out of the batch and score it again",
    ),
    "sampler_inf": (
        {"sampler_logprob": with_value(BATCH.sampler_logprob, 5, float("-inf"))},
        r"sampler_logprob\[5\] is -inf; .* a token that was drawn has a finite log-probability",
    ),
    "behavior_nan": (
        {"behavior_logprob": with_value(BATCH.behavior_logprob, 0, float("nan"))},
        r"behavior_logprob\[0\] is nan; .* a token that was drawn has a finite log-probability",
    ),
    "sampler_shape": (
        {"sampler_logprob": BATCH.sampler_logprob[:6]},
        r"sampler_logprob has shape \[6\] and dtype torch.float32; expected float \[7\]",
    ),
    "behavior_dtype": (
        {"behavior_logprob": BATCH.behavior_logprob.long()},
        r"behavior_logprob has shape \[7\] and dtype torch.int64; expected float \[7\]",
    ),
    "device": ({"tokens": BATCH.tokens.to("meta")}, "tokens is on meta, student_hidden on cpu; move it there first"),
}


@pytest.mark.parametrize("function", [minillm_loss, minillm_loss_dense, term_gradients])
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_with_its_place_and_remedy(case, function):
    """The walk, the oracle and the probe refuse alike."""
    changes, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        function(*replace(BATCH, **changes).arguments, ObjectiveSettings())


@pytest.mark.parametrize("normalizer", [0, -3, float("nan")])
def test_a_normaliser_that_is_no_count_is_refused(normalizer):
    """Zero trained tokens is a caller's mistake, not an infinite loss."""
    with pytest.raises(ValueError, match=r"normalizer is .*; expected the sum of settings.normalizer_share .* above 0"):
        minillm_loss(*BATCH.arguments, ObjectiveSettings(), normalizer=normalizer)


def test_a_response_longer_than_the_horizon_is_refused():
    """Its slots would be counted as fewer than they are."""
    with pytest.raises(ValueError, match=r"gives sequence 1 4 tokens, objective.horizon is 3; set the horizon to"):
        minillm_loss(*BATCH.arguments, ObjectiveSettings(return_norm="horizon", horizon=3))


@pytest.mark.parametrize("name", ["scale", "soft_cap"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_a_head_refuses_a_factor_that_is_not_positive(name, value):
    """A soft-cap of 0 often means "none" in a model's config."""
    with pytest.raises(ValueError, match=f"Head.{name} is .*; expected a positive number, or None to leave it out"):
        Head(BATCH.student_head.weight, **{name: value})


def test_mixture_weight_refuses_unequal_shapes_and_alpha_out_of_range():
    """The public function checks for itself."""
    with pytest.raises(ValueError, match=r"sampler_logprob has shape \[3\], teacher_logprob \[4\]"):
        mixture_log_weight(torch.zeros(3), torch.zeros(4), alpha=0.2)
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"objective.alpha is {alpha}; expected 0 <= alpha <= 1"):
            mixture_log_weight(torch.zeros(3), torch.zeros(3), alpha=alpha)


@pytest.mark.parametrize("function", [text_loss, text_loss_dense])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd_ratio": 1.5}, "kd_ratio is 1.5; expected a share from 0 to 1"),
        ({"kd_ratio": 0.5}, "kd_ratio is 0.5 and teacher_hidden and teacher_head are not both given; give both"),
        ({"teacher_hidden": BATCH.teacher_hidden, "kd_ratio": 0.5}, "not both given; give both with kd_ratio above 0"),
        (
            {"teacher_hidden": BATCH.teacher_hidden, "teacher_head": BATCH.teacher_head},
            "kd_ratio is 0.0 and teacher_hidden and teacher_head are given; .* neither with 0",
        ),
        ({"normalizer": 0}, "normalizer is 0; expected the number of text tokens of the whole batch, above 0"),
        ({"tokens": with_value(BATCH.tokens, 1, -100)}, r"tokens\[1\] is -100, outside the vocabulary of 6"),
        ({"tokens": BATCH.tokens.float()}, "tokens has shape .* expected one dimension of int64"),
        ({"student_hidden": BATCH.student_hidden[:2]}, r"student_hidden has shape \[2, 5\]; expected \[7, d\]"),
        (
            {"student_hidden": with_value(BATCH.student_hidden, (0, 0), float("nan"))},
            r"student_hidden\[0, 0\] is nan; leave the text out of the batch",
        ),
        (
            {
                "teacher_hidden": with_value(BATCH.teacher_hidden, (1, 0), float("inf")),
                "teacher_head": BATCH.teacher_head,
                "kd_ratio": 1.0,
            },
            r"teacher_hidden\[1, 0\] is inf; leave the text out of the batch",
        ),
        (
            {"teacher_hidden": BATCH.teacher_hidden, "teacher_head": torch.randn(7, 6), "kd_ratio": 1.0},
            "the heads have student_head 6, teacher_head 7 rows",
        ),
    ],
)
def test_text_loss_refuses_bad_input(changes, message, function):
    """The same checks, and a teacher exactly when it has a share."""
    arguments = {"student_hidden": BATCH.student_hidden, "student_head": BATCH.student_head, "tokens": BATCH.tokens}
    with pytest.raises(ValueError, match=message):
        function(**(arguments | changes))
