"""From one file of a comparison to its runs: what they share, what differs, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm_ray.config import InputError
from minillm_ray.config.compare import Comparison, load_comparison
from minillm_ray.config.load import dump_config, load_config

CONFIGS = Path(__file__).parents[3] / "configs"
WriteRun = Callable[..., Path]

TEACHER = {"kind": "sft", "model": "teacher"}
STUDENT = {"kind": "sft", "model": "student"}
METHODS = [
    {"name": "sft", "phases": [STUDENT]},
    {"name": "mini", "phases": [{"kind": "minillm", "steps": 2}], "overrides": {"objective.alpha": 0.5}},
]


@pytest.fixture
def load(write_run: WriteRun, run_tree: dict[str, Any]) -> Callable[..., Comparison]:
    """Loads a comparison of two methods over two seeds; keywords change its section `compare`."""
    del run_tree["phases"]
    run_tree["student"], run_tree["teacher"] = {"model": "embedded:student"}, {"model": "embedded:teacher"}
    run_tree["data"] |= {"train": "embedded", "held_out": "embedded"}

    def load(*overrides: str, tree: dict[str, Any] | None = None, **changes: Any) -> Comparison:
        section = {"seeds": [1, 2], "prepare": [TEACHER, STUDENT], "methods": METHODS} | changes
        return load_comparison(write_run(compare=section, **(tree or {})), overrides)

    return load


def refusal(load: Callable[..., Comparison], **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(**changes)
    return str(caught.value)


def test_the_shipped_comparison_is_the_papers() -> None:
    """Baselines, MiniLLM, and its three ablations; every run is whole and of one length in optimizer steps."""
    comparison = load_comparison(CONFIGS / "quickstart_compare.yaml")
    assert comparison.methods[:4] == ("sft", "kd", "seqkd", "minillm")
    assert {run.seed for run in comparison.runs if run.method == "minillm"} == {10, 20, 30}
    settings = {run.method: run.config.objective for run in comparison.runs if run.seed == 10}
    assert settings["minillm"].alpha == 0.2
    assert settings["minillm-no-teacher-mixing"].alpha == 0
    assert settings["minillm-no-length-norm"].return_norm == "none"
    assert settings["minillm-no-single-step"].single_step is False


def test_each_method_runs_once_a_seed_in_a_folder_of_its_own(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """Seed by seed, so that an unfinished comparison is a fair one of fewer seeds."""
    comparison = load()
    assert [(run.method, run.seed) for run in comparison.runs] == [("sft", 1), ("mini", 1), ("sft", 2), ("mini", 2)]
    for run in comparison.runs:
        assert run.config.seed == run.seed
        assert run.config.run_dir == tmp_path / "run" / run.method / f"seed-{run.seed}"


def test_runs_differ_in_phases_seed_and_overrides_alone(load: Callable[..., Comparison]) -> None:
    """Models and data are those that the preparation leaves, also where it makes them itself."""
    comparison = load()
    prepared = comparison.folder / "prepared"
    for run in comparison.runs:
        assert run.config.student.model == str(prepared / "student")
        assert run.config.teacher.model == str(prepared / "phases" / "1-sft-teacher" / "best")
        assert run.config.data.train == str(prepared / "embedded" / "train.jsonl")
        assert run.config.data.held_out == str(prepared / "embedded" / "held_out.jsonl")
    assert [run.config.objective.alpha for run in comparison.runs] == [0, 0.5, 0, 0.5]
    assert comparison.prepare is not None
    assert comparison.prepare.data.train == "embedded"


def test_the_teacher_answers_once_for_all(load: Callable[..., Comparison]) -> None:
    """Its row is measured with the student that all begin with, and by each run where that was not."""
    both = load()
    assert both.prepare is not None
    assert both.prepare.evaluation.teacher_row
    assert not any(run.config.evaluation.teacher_row for run in both.runs)
    assert all(run.config.evaluation.teacher_row for run in load(prepare=[TEACHER]).runs)


def test_what_is_not_prepared_is_taken_as_it_is(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """Teacher alone: the students of all runs are the file's own. Nothing at all: so are the teachers."""
    models = {"student__model": "student", "teacher__model": "teacher"}
    files = {"data__train": "train.jsonl", "data__held_out": "held_out.jsonl"}
    for run in load(prepare=[TEACHER], tree=models).runs:
        assert run.config.student.model == str(tmp_path / "student")
        assert run.config.teacher.model == str(tmp_path / "run/prepared/phases/1-sft-teacher/best")
    comparison = load(prepare=[], tree=models | files)
    assert comparison.prepare is None
    for run in comparison.runs:
        assert (run.config.student.model, run.config.teacher.model) == (
            str(tmp_path / "student"),
            str(tmp_path / "teacher"),
        )
        assert run.config.data.train == str(tmp_path / "train.jsonl")


def test_a_method_may_have_fewer_seeds(load: Callable[..., Comparison]) -> None:
    """An ablation with one seed."""
    runs = load(methods=[METHODS[0], METHODS[1] | {"seeds": [2]}]).runs
    assert [(run.method, run.seed) for run in runs] == [("sft", 1), ("sft", 2), ("mini", 2)]


def test_the_command_line_overrides_the_comparison_as_it_does_a_run(load: Callable[..., Comparison]) -> None:
    """Seeds, and settings of every run."""
    runs = load("compare.seeds=[7]", "learner.ranks=2").runs
    assert {run.seed for run in runs} == {7}
    assert {run.config.learner.ranks for run in runs} == {2}


def test_each_run_can_be_run_by_itself(load: Callable[..., Comparison], tmp_path: Path) -> None:
    """Its configuration, written, is read back equal: that is how it is run."""
    for number, run in enumerate(load().runs):
        path = tmp_path / f"{number}.yaml"
        path.write_text(dump_config(run.config))
        assert load_config(path) == run.config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": [METHODS[0], METHODS[0]]}, "method sft is there twice"),
        ({"seeds": [1, 1]}, "seed 1 is there twice"),
        ({"methods": [METHODS[0] | {"name": "prepared"}]}, "a method is called prepared"),
        ({"methods": [METHODS[0] | {"name": "a/b"}]}, "compare.methods.0.name is 'a/b'"),
        ({"methods": [METHODS[0] | {"seeds": [3]}]}, "method sft has seed 3; expected some of seeds=[1, 2]"),
        ({"methods": [METHODS[0] | {"sedes": [1]}]}, "compare.methods.0.sedes is not a key. Did you mean seeds?"),
        ({"sedes": [1]}, "compare.sedes is not a key. Did you mean seeds?"),
        ({"methods": [METHODS[0] | {"overrides": {"data.train_rows": 5}}]}, "data is the same in every run"),
        ({"methods": [METHODS[0] | {"overrides": {"teacher.model": "x"}}]}, "teacher.model is the same in every run"),
        ({"methods": [METHODS[0] | {"overrides": {"objective.alfa": 0}}]}, "methods, sft: objective.alfa is not a key"),
        ({"methods": [METHODS[0] | {"phases": [{"kind": "kd", "epoch": 1}]}]}, "sft: phases.0.epoch is not a key"),
        ({"methods": [METHODS[0] | {"phases": [TEACHER]}]}, "the last phase trains the teacher"),
        ({"prepare": []}, "data.train is made anew by every run from its own seed, and compare.prepare is empty"),
    ],
)
def test_what_makes_no_comparison_is_refused(
    changes: dict[str, Any], says: str, load: Callable[..., Comparison]
) -> None:
    """One line that names the file, the place and the remedy."""
    message = refusal(load, **changes)
    assert says in message
    assert "run.yaml: " in message


def test_a_method_may_override_what_the_teacher_tells(load: Callable[..., Comparison]) -> None:
    """Only its model is shared by all."""
    [*_, last] = load(methods=[METHODS[1] | {"overrides": {"teacher.payload": "topk"}}]).runs
    assert last.config.teacher.payload == "topk"


def test_a_run_file_is_no_comparison(write_run: WriteRun) -> None:
    """And is told which command is its own."""
    with pytest.raises(InputError, match="minillm-ray train"):
        load_comparison(write_run())
