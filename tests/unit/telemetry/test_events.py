"""What happened is in the file, in order, and a second run goes on below the first."""

from pathlib import Path

import pytest

from minillm_ray.config.errors import InputError
from minillm_ray.telemetry.events import Event, EventsWriter, read_events


def test_events_are_read_back_in_order_across_two_runs(tmp_path: Path) -> None:
    times = iter([1.0, 2.0])
    for kind in ("rollout_died", "resumed"):
        writer = EventsWriter(tmp_path / "events.jsonl", clock=lambda: next(times))
        writer.write(kind, {"replica": 3})
        writer.close()
    assert read_events(tmp_path / "events.jsonl") == [
        Event(1.0, "rollout_died", {"replica": 3}),
        Event(2.0, "resumed", {"replica": 3}),
    ]


def test_a_file_of_something_else_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=r"events\.jsonl: a line without 'time'"):
        read_events(tmp_path / "events.jsonl")
