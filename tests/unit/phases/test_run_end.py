"""How a run ends is written down, and the report of it, whatever the end was."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minillm_ray.config.errors import RunError, Terminated
from minillm_ray.config.load import load_config
from minillm_ray.phases import run as module
from minillm_ray.phases.run_context import RunContext
from minillm_ray.telemetry.events import read_events

WriteRun = Callable[..., Path]


@pytest.fixture
def end_with(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[BaseException | None], Any]:
    """Runs phases that make one step and end so; returns the fields of the last event."""
    config = load_config(write_run())

    def end(error: BaseException | None) -> Any:
        def run_phases(context: RunContext, models: object) -> None:
            context.metrics.write(step=1, phase="1-minillm", metrics={"objective/loss/total": 1.0})
            if error is not None:
                raise error

        monkeypatch.setattr(module, "_run_phases", run_phases)
        inputs: Any = SimpleNamespace(student="student", teacher="teacher")
        facts: Any = None
        try:
            module._run_in(config.run_dir, config, facts, inputs)
        except BaseException as raised:
            assert raised is error
        return read_events(tmp_path / "run" / "events.jsonl")[-1].fields

    return end


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (None, {"status": "done"}),
        (RunError("the teacher is gone"), {"status": "failed", "reason": "the teacher is gone"}),
        (Terminated(), {"status": "stopped"}),
        (KeyboardInterrupt(), {"status": "stopped"}),
    ],
)
def test_the_end_is_an_event_and_the_report_is_written(
    error: BaseException | None,
    fields: dict[str, str],
    end_with: Callable[[BaseException | None], Any],
    tmp_path: Path,
) -> None:
    """The report knows how it ended, since that is written first."""
    assert end_with(error) == fields
    page = (tmp_path / "run" / "report.html").read_text()
    assert f'<span class="status {fields["status"]}">' in page
    assert fields.get("reason", "") in page


def test_a_report_that_cannot_be_written_leaves_the_run_as_it_is(
    end_with: Callable[[BaseException | None], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, or a mistake of the report's own: one line says so."""

    def write_report(run_dir: Path) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_report", write_report)
    assert end_with(None) == {"status": "done"}
    assert "report.html was not written: no space left on device" in capsys.readouterr().err
