"""Progress is readable on a terminal and in a log, and no number is ever cut."""

import io

import pytest

from minillm_ray.telemetry.console import RunConsole, StepNumbers, _Progress, format_duration, print_table

FULL = StepNumbers(loss=-12.3456, reverse_kl=10.1234, tokens_per_second=123456.7, response_tokens=1234.5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_progress(numbers: StepNumbers) -> _Progress:
    clock = Clock()
    progress = _Progress("minillm", 5000, 0, clock)
    clock.now = 1000.0
    progress.update(1000, numbers)
    return progress


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_number_is_whole_and_fits_the_width(width: int) -> None:
    line = make_progress(FULL).bar_line(width)
    assert all(len(part) <= width for part in line.split("\n"))
    for shown in ("minillm 1000/5000", "loss -12.3456", "KL 10.1234", "123457 tok/s", "len 1234.5", "ETA 1:06:40"):
        assert shown in line


def test_eighty_columns_hold_a_usual_step_in_one_line_with_a_bar() -> None:
    usual = StepNumbers(loss=0.5123, tokens_per_second=3600.0)
    line = make_progress(usual).bar_line(80)
    assert "\n" not in line
    assert "━" in line


def test_what_a_phase_does_not_have_is_not_shown() -> None:
    line = make_progress(StepNumbers(loss=0.5)).plain_line()
    assert line == "minillm step 1000/5000  loss 0.5000  ETA 1:06:40"


def test_time_left_counts_only_the_steps_made_since_the_resume() -> None:
    clock = Clock()
    progress = _Progress("sft", 100, 90, clock)
    clock.now = 10.0
    progress.update(95, StepNumbers())
    assert progress.plain_line().endswith("ETA 0:00:10")


def test_without_a_terminal_there_is_a_plain_line_now_and_then() -> None:
    """The first, the last, and at most one in ten seconds."""
    stream, clock = io.StringIO(), Clock()
    console = RunConsole(stream, clock)
    console.begin("sft", total_steps=25)
    for step in range(1, 26):
        clock.now += 1.0
        console.step(step, StepNumbers(loss=1.0))
    console.end()
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"sft step {step}/25" for step in (1, 11, 21, 25)]
    assert "\x1b" not in stream.getvalue()


def test_a_long_plain_line_is_one_line_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    console = RunConsole(stream, Clock())
    console.begin("minillm", total_steps=5000)
    console.step(1, FULL)
    console.message("student written to " + "/long" * 20)
    assert len(stream.getvalue().splitlines()) == 2


def test_on_a_terminal_the_last_numbers_and_every_message_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = RunConsole(stream, Clock())
    console.begin("minillm", total_steps=2)
    console.step(1, StepNumbers(loss=1.0))
    console.message("[rollout 1] started")
    console.step(2, StepNumbers(loss=0.125))
    console.end()
    assert "[rollout 1] started" in stream.getvalue()
    assert "loss 0.1250" in stream.getvalue()


def test_a_step_of_no_phase_is_our_mistake() -> None:
    with pytest.raises(RuntimeError, match="no phase is under way"):
        RunConsole(io.StringIO(), Clock()).step(1, StepNumbers())


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_a_table_has_every_number_whole_in_any_width(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    print_table(
        "Held-out prompts",
        ["model", "reverse KL (nats/token)", "Rouge-L (%)", "mean length (tokens)"],
        [["teacher", 0.0, 55.123456, 1234567], ["student after", 1.23456, None, 41.25]],
        stream,
    )
    for shown in ("0.000", "55.12", "1,234,567", "1.235", "41.25", "teacher", "student after"):
        assert shown in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_a_row_that_does_not_fit_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 values"):
        print_table("t", ["a", "b"], [[1.0]], io.StringIO())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3725.0, "1:02:05"), (-3, "0:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
