"""The report of a whole run folder: done, going on, cut short, hostile, long."""

import base64
import hashlib
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
from scripted.recorded_run import RecordedRun

from minillm_ray.cli import main
from minillm_ray.config.errors import InputError
from minillm_ray.report import write_report
from minillm_ray.report.outcome import phase_outcomes, run_status
from minillm_ray.report.page import render
from minillm_ray.report.record import MAX_SAMPLES, RunRecord, first_and_last, read_run


def report_of(recorded: RecordedRun) -> str:
    return write_report(recorded.folder, recorded.clock).read_text()


def test_the_report_of_a_run_that_is_done_has_its_scores(recorded: RecordedRun) -> None:
    """Before and after, the phases, the models, a figure for every metric of the catalogue that the run has."""
    recorded.write(steps=12)
    page = report_of(recorded)
    assert run_status(read_run(recorded.folder)).status == "done"
    for part in ("0.9232 → 0.2296", "40.53 → 55.52", "smollm2-15-layers", "12 of 12", "rollout lost: replica 1"):
        assert part in page
    titles = ("Reverse KL", "Supervised loss", "Loss by term", "Entropy", "Clip fraction", "Gradient norm", "Speed")
    for title in titles:
        assert f"<h3>{title} <small>" in page
    assert "<h3>Rouge-L " not in page
    assert page.count("<article>") == MAX_SAMPLES


def test_a_run_that_goes_on_is_reported_like_one_that_is_done(recorded: RecordedRun) -> None:
    """Its last phase is under way; a later phase would not have begun."""
    recorded.write(steps=12, done=False)
    record = read_run(recorded.folder)
    assert [phase.status for phase in phase_outcomes(record)] == ["done", "under way"]
    assert "last written 0:00:00 before this report" in report_of(recorded)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_file_that_ends_in_half_a_line_is_read_up_to_there(name: str, recorded: RecordedRun) -> None:
    """As it does while the run writes, and after a crash."""
    recorded.write(steps=12)
    whole = report_of(recorded)
    with (recorded.folder / name).open("a") as file:
        file.write('{"step": 13, "pha')
    assert report_of(recorded) == whole


@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "samples.parquet"])
def test_a_file_that_is_not_there_leaves_out_its_part_alone(name: str, recorded: RecordedRun) -> None:
    recorded.write(steps=12)
    (recorded.folder / name).unlink()
    assert "<h3>Reverse KL " in report_of(recorded)


def test_a_run_that_was_taken_up_again_is_under_way(recorded: RecordedRun) -> None:
    """What it said at its first end no longer holds."""
    recorded.write(steps=12, done=False)
    recorded.events.write("run_ended", {"status": "failed", "reason": "a replica was lost too often"})
    assert run_status(read_run(recorded.folder)).reason == "a replica was lost too often"
    recorded.minillm_step(13, 20)
    assert run_status(read_run(recorded.folder)).status == "under way"


@pytest.mark.parametrize(("payload", "says"), [("topk", "a lower bound"), ("sampled", "far noisier")])
def test_an_approximate_divergence_is_called_so(payload: str, says: str, recorded: RecordedRun) -> None:
    """In a banner; the exact payload has none."""
    recorded.write(steps=3)
    assert "Approximate." not in report_of(recorded)
    recorded.write_config(payload=payload)
    page = report_of(recorded)
    assert "Approximate." in page
    assert says in page


def test_hostile_text_stays_text(recorded: RecordedRun) -> None:
    """In a prompt, a token, an event, a model's name and the folder's."""
    hostile = '<script>alert("1")</script>{{script}}'
    recorded.write(steps=2, done=False)
    recorded.write_config(model=hostile)
    recorded.events.write("rollout_lost", {"reason": hostile})
    sample = recorded.sample(3, 0)
    tokens = [hostile, *sample.response_tokens[1:]]
    recorded.samples.write([replace(sample, prompt=hostile, response_tokens=tokens)])
    recorded.samples.close()
    page = report_of(recorded)
    assert "<script>alert" not in page
    assert page.count(escape(hostile, quote=False)) >= 5
    assert page.count("<script>") == 1


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone(recorded: RecordedRun) -> None:
    """Nothing that would be fetched, and a policy with the hash of the one script."""
    recorded.write(steps=2)
    page = report_of(recorded)
    assert re.findall(r"\bsrc=|\bhref=|url\(|@import", page) == []
    (script,) = re.findall(r"<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "content=\"default-src 'none'; " in page
    assert f"script-src 'sha256-{digest}'\">" in page


def test_twenty_thousand_steps_with_long_responses_stay_below_two_megabytes(recorded: RecordedRun) -> None:
    """Figures are thinned and responses cut; the first and the last steps are still there."""
    recorded.write_config(steps=20_000)
    names = [f"room/quantity_{number}/mean" for number in range(30)]
    rows: list[dict[str, Any]] = [
        {"step": step, "phase": "2-minillm", "time": float(step)} | dict.fromkeys(names, step * 7919 % 1000 / 997)
        for step in range(1, 20_001, 4)
    ]
    base = recorded.sample(1, 0)
    many = {
        name: list(getattr(base, name)) * 100
        for name in ("kl", "student_logprob", "teacher_logprob", "response_tokens", "response_token_ids")
    }
    record = RunRecord(recorded.folder, {}, rows, [], [replace(base, **many)] * MAX_SAMPLES)
    assert len(render(record, written=0.0)) < 2_000_000


def test_the_first_and_the_last_samples_are_shown() -> None:
    assert first_and_last(3) == [0, 1, 2]
    assert first_and_last(100) == [*range(12), *range(88, 100)]


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "pha'])
def test_a_folder_without_a_step_is_the_users_mistake(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, status 2, and nothing is written."""
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message
    assert "no metrics.jsonl" in message or "no complete line yet" in message
    assert not (tmp_path / "report.html").exists()


def test_the_command_prints_the_path(recorded: RecordedRun, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.write(steps=2)
    assert main(["report", str(recorded.folder)]) == 0
    assert capsys.readouterr().out == f"{recorded.folder / 'report.html'}\n"


def test_a_log_of_something_else_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: a line without 'phase'"):
        read_run(tmp_path)
