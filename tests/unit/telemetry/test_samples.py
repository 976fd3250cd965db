"""samples.parquet has the exact tokens, is complete at any moment, stays bounded and spans the whole run."""

from dataclasses import replace
from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry import samples as module
from minillm_ray.telemetry.samples import Sample, SamplesWriter, read_samples

SAMPLE = Sample(
    step=1,
    phase="minillm",
    prompt_index=42,
    weight_version=3,
    prompt_token_ids=[5, 6],
    response_token_ids=[7, 8, 0],
    kl=[0.5, 0.25, 0.125],
    student_logprob=[-1.0, -2.0, -3.0],
    teacher_logprob=[-1.5, -2.5, -3.5],
    response_tokens=["h", "é", ""],
    prompt="Say hé",
    response="hé",
    truncated=False,
)


def test_a_sample_is_read_back_token_by_token(tmp_path: Path) -> None:
    SamplesWriter(tmp_path / "samples.parquet").write([SAMPLE, replace(SAMPLE, prompt_index=43, truncated=True)])
    assert read_samples(tmp_path / "samples.parquet") == [SAMPLE, replace(SAMPLE, prompt_index=43, truncated=True)]


def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    writer = SamplesWriter(tmp_path / "samples.parquet")
    writer.write([replace(SAMPLE, step=step) for step in range(5)])
    writer.close()
    got = read_samples(tmp_path / "samples.parquet", rows=lambda num_rows: [0, num_rows - 1])
    assert [sample.step for sample in got] == [0, 4]


def test_the_file_is_complete_after_every_write_and_has_all_after_close(tmp_path: Path) -> None:
    writer = SamplesWriter(tmp_path / "samples.parquet")
    for step in range(1, 101):
        writer.write([replace(SAMPLE, step=step)])
        got = [sample.step for sample in read_samples(tmp_path / "samples.parquet")]
        assert got == list(range(1, len(got) + 1))
        assert len(got) >= step * 0.95
    writer.close()
    assert len(read_samples(tmp_path / "samples.parquet")) == 100


def test_the_file_is_rewritten_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cost of a run would grow with the square of its steps."""
    writes = []
    monkeypatch.setattr(module, "write_atomically", lambda path, content: writes.append(len(content)))
    writer = SamplesWriter(tmp_path / "samples.parquet")
    for step in range(400):
        writer.write([replace(SAMPLE, step=step)])
    assert len(writes) < 100


def test_a_resumed_run_keeps_what_is_there_and_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    for steps, version in (((1, 2, 3), 0), ((3, 4), 9)):
        writer = SamplesWriter(tmp_path / "samples.parquet")
        for step in steps:
            writer.write([replace(SAMPLE, step=step, weight_version=version)] * 2)
        writer.close()
    got = [(sample.step, sample.weight_version) for sample in read_samples(tmp_path / "samples.parquet")]
    assert got == [(1, 0), (1, 0), (2, 0), (2, 0), (3, 9), (3, 9), (4, 9), (4, 9)]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 16])
def test_a_full_file_keeps_its_bound_and_reaches_to_the_last_step(tmp_path: Path, max_rows: int) -> None:
    writer = SamplesWriter(tmp_path / "samples.parquet", max_rows=max_rows)
    for step in range(1, 41):
        writer.write([replace(SAMPLE, step=step)])
    writer.close()
    steps = [sample.step for sample in read_samples(tmp_path / "samples.parquet")]
    assert len(steps) <= max_rows
    assert steps == sorted(steps)
    assert steps[-1] == 40
    assert steps[0] == 1 or max_rows == 1


def test_numbers_that_do_not_belong_to_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher_logprob has 2 values; expected one a token, 3"):
        replace(SAMPLE, teacher_logprob=[0.0, 0.0])


def test_a_file_of_something_else_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        SamplesWriter(tmp_path / "samples.parquet")
