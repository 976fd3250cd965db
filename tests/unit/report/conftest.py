"""Run folders as the real writers leave them."""

from pathlib import Path

import pytest
from scripted.recorded_run import RecordedRun


@pytest.fixture
def recorded(tmp_path: Path) -> RecordedRun:
    """A run into tmp_path/first; nothing is written before the test says what."""
    (tmp_path / "first").mkdir()
    return RecordedRun(tmp_path / "first")
