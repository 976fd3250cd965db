"""The driver's state is read as it was written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from minillm_ray.checkpoint.contents import (
    PipelineState,
    UntrainedResponse,
    read_pipeline_state,
    write_pipeline_state,
)
from minillm_ray.config import InputError

STATE = PipelineState(
    phase="3-minillm",
    rounds=123,
    num_texts=17,
    ledger={"num_taken": 1984, "untrained": [3, 7], "rate": 0.1},
    untrained=(UntrainedResponse(place=3, version=120),),
)


@pytest.mark.parametrize("state", [STATE, PipelineState(phase="minillm", rounds=0, num_texts=0, ledger={})])
def test_the_state_comes_back_equal(tmp_path: Path, state: PipelineState) -> None:
    """A full one, and one before the first step."""
    record = write_pipeline_state(tmp_path, state)
    assert record.name == "pipeline.json"
    assert read_pipeline_state(tmp_path) == state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 2}, "format_version: input should be 1"),
        ({"roundz": 3}, "roundz: extra inputs are not permitted"),
        ({"rounds": "3"}, "rounds: input should be a valid integer"),
        ({"rounds": -1}, "rounds: input should be greater than or equal to 0"),
        ({"untrained": [{"place": 1}]}, "untrained.0.version: field required"),
    ],
)
def test_what_another_release_wrote_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Nothing is converted or guessed; the message names the file, the key and the way out."""
    tree = json.loads(STATE.model_dump_json()) | change
    (tmp_path / "pipeline.json").write_text(json.dumps(tree))
    with pytest.raises(InputError) as caught:
        read_pipeline_state(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/pipeline.json: {says}")
    assert "--fresh" in str(caught.value)


@pytest.mark.parametrize("ledger", [{"rate": float("nan")}, {"open": {1, 2}}, {3: "three"}])
def test_a_ledger_that_json_cannot_hold_is_refused_before_it_is_written(ledger: Any) -> None:
    """Not when the run needs it back."""
    with pytest.raises(ValidationError):
        PipelineState(phase="minillm", rounds=0, num_texts=0, ledger=ledger)
