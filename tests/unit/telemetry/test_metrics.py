"""Metric names are declared, lines are JSON whatever the numbers, and a resume does not count a step twice."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.declarations import METRICS
from minillm_ray.telemetry.metrics import MetricsWriter, read_metrics

KL = "objective/kl_nats_per_token/mean"


def test_a_declared_name_has_three_parts_and_a_meaning_and_is_no_prefix_of_another() -> None:
    for name, meaning in METRICS.items():
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+/[a-z0-9_]+", name), name
        assert len(meaning) > 10, name
        assert not any(other.startswith(f"{name}/") for other in METRICS)


def test_a_line_has_the_step_the_phase_the_time_and_the_numbers(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", clock=lambda: 1234.5)
    writer.write(step=3, phase="minillm", metrics={KL: 0.25})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3,
        "phase": "minillm",
        "time": 1234.5,
        KL: 0.25,
    }


def test_a_name_that_is_not_declared_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(KeyError, match="objective/kl/mean"):
        writer.write(step=1, phase="sft", metrics={KL: 1.0, "objective/kl/mean": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_becomes_null(tmp_path: Path, number: float) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(step=1, phase="sft", metrics={KL: number})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row[KL] is None


def test_of_a_step_that_a_resume_repeats_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for steps, value in (([1, 2, 3], 1.0), ([2, 3, 4], 2.0)):
        writer = MetricsWriter(path)
        for step in steps:
            writer.write(step=step, phase="sft", metrics={KL: value})
        writer.close()
    assert [(row["step"], row[KL]) for row in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_a_step_may_be_evaluated_after_it_was_trained(tmp_path: Path) -> None:
    """Two lines, one row: neither takes the other's numbers away, also where a resume repeats the step."""
    rouge = "evaluation/rouge_l/mean"
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for metrics in ({KL: 1.0}, {rouge: 40.0}, {KL: 2.0}):
        writer.write(step=1, phase="minillm", metrics=metrics)
    [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert (row[KL], row[rouge]) == (2.0, 40.0)


def test_the_same_step_of_two_phases_is_two_steps(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for phase in ("sft", "minillm"):
        writer.write(step=1, phase=phase, metrics={})
    assert [row["phase"] for row in read_metrics(tmp_path / "metrics.jsonl")] == ["sft", "minillm"]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board")
    writer.write(step=7, phase="minillm", metrics={KL: 0.5})
    writer.close()
    board = accumulator.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars(f"minillm/{KL}")] == [(7, 0.5)]


def test_tensorboard_that_is_not_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"minillm_ray\[tensorboard\]"):
        MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board")
    assert not (tmp_path / "metrics.jsonl").exists()
