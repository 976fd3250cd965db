"""The signal-to-noise ratio of the long-term gradient: |mean|^2 over the variance of that mean."""

import math

import pytest
import torch
from scripted.models import make_trainer, tiny
from scripted.scored import draw, make_learner, score

from minillm_ray.learner.probe import signal_to_noise
from minillm_ray.learner.step_metrics import finish_step

NAME = "objective/long_term_gradient_snr/probe"


def test_the_ratio_is_that_of_the_gradients_of_whole_sequences() -> None:
    """Summed over each sequence's slots; two sequences with gradients (3, 0) and (1, 0): 4 over 2 / 2."""
    gradients = torch.tensor([[1.0, 0.5], [2.0, -0.5], [1.0, 0.0]])
    assert signal_to_noise(gradients, torch.tensor([0, 2, 3])) == pytest.approx(4.0)


def test_noise_alone_is_about_one_and_a_signal_grows_with_the_number_of_sequences() -> None:
    """Over random gradients, with and without a common mean."""
    torch.manual_seed(0)
    noise = torch.randn(4000, 50)
    bounds = torch.arange(4001)
    assert signal_to_noise(noise, bounds) == pytest.approx(1.0, abs=0.5)
    some, more = (signal_to_noise(noise[:count] + 0.2, bounds[: count + 1]) for count in (1000, 4000))
    assert more == pytest.approx(4 * some, rel=0.1)
    assert some > 10


def test_it_does_not_depend_on_the_gradients_size() -> None:
    """The normaliser of the loss cancels."""
    torch.manual_seed(0)
    gradients, bounds = torch.randn(12, 5), torch.tensor([0, 4, 7, 12])
    assert signal_to_noise(gradients * 1e-6, bounds) == pytest.approx(signal_to_noise(gradients, bounds), rel=1e-4)


@pytest.mark.parametrize("gradients", [torch.randn(3, 2), torch.zeros(3, 2)])
def test_what_cannot_be_measured_is_nan(gradients: torch.Tensor) -> None:
    """A single sequence; several whose gradients are all zero."""
    bounds = torch.tensor([0, 3]) if gradients.any() else torch.tensor([0, 1, 3])
    assert math.isnan(signal_to_noise(gradients, bounds))


def test_a_step_is_probed_every_so_often_and_trains_the_same() -> None:
    """On steps 0, 2, 4 for probe_every=2; the weights are those of a run that never looks."""
    results = []
    for probe_every in (2, None):
        model, teacher = tiny("llama"), tiny("llama", seed=7).eval()
        learner = make_learner(make_trainer(model), teacher, micro_batch_tokens=40, probe_every=probe_every)
        reports = [learner.step(score(model, teacher, draw(model, seed=k, num_sequences=6))) for k in range(3)]
        results.append(
            ([NAME in finish_step(report.metrics) for report in reports], dict(learner.trainer.student.named_weights()))
        )
    (probed, weights), (never, expected) = results
    assert (probed, never) == ([True, False, True], [False, False, False])
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
