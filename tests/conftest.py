"""What every test shares: the environment, where shared modules lie, a run file that can be spoilt, tiny models.

Environment variables are set before ray, torch or transformers is first imported: that is when they are read.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

TESTS = Path(__file__).parent
# Shared modules are imported by name: `scripted`, and `objective_bed` beside the tests of the objective.
sys.path[:0] = [str(TESTS), str(TESTS / "unit" / "objective")]

import pytest  # noqa: E402
import yaml  # noqa: E402
from hypothesis import settings  # noqa: E402

# A shared machine may stall any example; and nothing is written into the checkout.
settings.register_profile("shared machine", deadline=None, max_examples=60, database=None)
settings.load_profile("shared machine")

_RUN = {
    "run_dir": "run",
    "phases": [{"kind": "minillm", "steps": 2, "rollouts": 4, "minibatch": 4}],
    "student": {"model": "student"},
    "teacher": {"model": "teacher"},
    "data": {
        "train": "train.jsonl",
        "held_out": "held_out.jsonl",
        "template": "bare",
        "max_prompt_tokens": 32,
    },
    "rollout": {"max_response_tokens": 16},
    "objective": {"alpha": 0},
}
"""A whole configuration; the models and the data that it names are those of `run_folder`."""

_ROWS = """\
{"instruction": "say a b", "input": "", "output": "a b"}
{"instruction": "say b", "input": "c", "output": ["b", "c"]}
"""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of instruction data beside the checkout."""
    folder = TESTS.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the instruction data in ../shared/data beside the checkout")
    return folder


@pytest.fixture
def run_tree() -> dict[str, Any]:
    """A whole configuration as a tree, to be changed and written."""
    return deepcopy(_RUN)


@pytest.fixture
def write_run(tmp_path: Path, run_tree: dict[str, Any]) -> Callable[..., Path]:
    """Writes tmp_path/run.yaml; a keyword section__key=value changes one setting, section=value a whole section."""

    def write(**changes: Any) -> Path:
        for name, value in changes.items():
            *parents, last = name.split("__")
            node = run_tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(run_tree, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student/ and teacher/: whole models of unequal width with one tokenizer."""
    from scripted.models import save_tiny_folder

    folder = tmp_path_factory.mktemp("models")
    save_tiny_folder(folder / "student", hidden_size=16, layers=1)
    save_tiny_folder(folder / "teacher", hidden_size=32, layers=2)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, tiny_folders: Path) -> Path:
    """tmp_path with everything that the run file names: both models and both data sets."""
    for role in ("student", "teacher"):
        shutil.copytree(tiny_folders / role, tmp_path / role)
    for name in ("train.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text(_ROWS)
    return tmp_path


@pytest.fixture
def few_embedded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick start's data, cut so that making it takes no time."""
    monkeypatch.setattr("minillm_ray.phases.inputs._EMBEDDED_TRAIN_ROWS", 6)
    monkeypatch.setattr("minillm_ray.phases.inputs._EMBEDDED_HELD_OUT_ROWS", 3)
    monkeypatch.setattr("minillm_ray.phases.inputs._EMBEDDED_VOCABULARY", 300)
    monkeypatch.setattr("minillm_ray.data.embedded._NUM_TOKENIZER_EXAMPLES", 400)


@pytest.fixture
def own_process_state() -> Iterator[None]:
    """Environment variables and the SIGTERM handler that the code under test sets are gone afterwards."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def scripted_cluster(monkeypatch: pytest.MonkeyPatch, own_process_state: None) -> Any:
    """Ray's functions answer for a cluster that does not exist, with four CPUs and no GPU."""
    from scripted.cluster import ScriptedCluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = ScriptedCluster()
    cluster.install(monkeypatch)
    return cluster
