"""A comparison: one file from which many runs follow, that differ in method and seed and in nothing else.

    sections of a run, `compare` in place of `phases`  ->  prepare (one run)  ->  method x seed (a run each)

`prepare` makes what all runs share: data, teacher, and the student that each of them begins with. In the paper the
baselines begin with the pre-trained student and MiniLLM with a fine-tuned one: leave the student's fine-tuning out of
`prepare` for that, and put it in front of the phases of the methods that want it.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from minillm_ray.config.base import Section
from minillm_ray.config.errors import InputError
from minillm_ray.config.load import check_config, check_section, read_tree, set_key
from minillm_ray.config.phases import phase_name, trains_student
from minillm_ray.config.run import RunConfig

PREPARED = "prepared"
"""The folder of what all runs share."""

_SHARED = ("run_dir", "seed", "phases", "student", "data", "teacher.model", "compare")
"""What no method may override: the runs would no longer be of the same models and data."""

PhaseTree = dict[str, Any]
"""A phase as the file has it; it is checked as part of each run."""


class MethodSection(Section):
    """A row of the table."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Of the row, and of the folder of its runs."""
    phases: list[PhaseTree] = Field(min_length=1)
    """As in a run. The last one trains the student."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Settings that make the method what it is, as in {objective.alpha: 0}. Models and data are the same in all."""
    seeds: list[int] | None = Field(None, min_length=1)
    """Some of `compare.seeds`; null for all of them."""


class CompareSection(Section):
    """Every method once a seed."""

    seeds: list[int] = Field(default_factory=lambda: [10, 20, 30], min_length=1)
    """Of the order of prompts and of every sampled response. What is prepared is so once, with the file's `seed`."""
    prepare: list[PhaseTree] = Field(default_factory=list)
    """Phases that make what all runs begin with."""
    methods: list[MethodSection] = Field(min_length=1)
    """In the order of the table."""

    @model_validator(mode="after")
    def names_and_seeds(self) -> "CompareSection":
        """Each folder has one run."""
        names = Counter(method.name for method in self.methods)
        for what, counts in (("method", names), ("seed", Counter(self.seeds))):
            twice = next((one for one, count in counts.items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{what} {twice} is there twice; expected each once")
        if PREPARED in names:
            raise ValueError(f"a method is called {PREPARED}, as is the folder of what all share; choose another name")
        for method in self.methods:
            unknown = sorted(set(method.seeds or ()) - set(self.seeds))
            if unknown:
                raise ValueError(f"method {method.name} has seed {unknown[0]}; expected some of seeds={self.seeds}")
        return self


@dataclass(frozen=True)
class ComparedRun:
    """One run of a method. config: whole, with models and data of what was prepared."""

    method: str
    seed: int
    config: RunConfig


@dataclass(frozen=True)
class Comparison:
    """folder: of everything. prepare: None where nothing is. runs: seed by seed, each with its methods in order."""

    folder: Path
    methods: tuple[str, ...]
    prepare: RunConfig | None
    runs: tuple[ComparedRun, ...]


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """The comparison in `path`, every run of it checked.

    Raises InputError as `load_config` does, and for a method that would change models or data.
    """
    path = Path(path)
    tree = read_tree(path, overrides)
    if "compare" not in tree or "phases" in tree:
        raise InputError(
            f"{path}: a comparison has a section compare in place of phases; expected compare.prepare and "
            f"compare.methods with the phases of each. For a single run: minillm-ray train"
        )
    section = check_section(CompareSection, tree.pop("compare"), where=f"{path}: compare")
    loader = _Loader(path, tree)
    prepare = (
        loader.config(section.prepare, "compare.prepare", seed=None, run_dir=PREPARED) if section.prepare else None
    )
    runs = []
    for seed in section.seeds:
        for method in section.methods:
            if seed not in (method.seeds or section.seeds):
                continue
            where = f"compare.methods, {method.name}"
            config = loader.config(
                method.phases,
                where,
                seed=seed,
                run_dir=f"{method.name}/seed-{seed}",
                overrides=_checked(method, path),
                prepared=prepare,
            )
            if not trains_student(config.phases[-1]):
                raise InputError(f"{path}: {where}: the last phase trains the teacher; expected one for the student")
            runs.append(ComparedRun(method.name, seed, config))
    return Comparison(loader.folder, tuple(method.name for method in section.methods), prepare, tuple(runs))


class _Loader:
    """Makes the configuration of each run from the sections that all share."""

    def __init__(self, path: Path, tree: dict[str, Any]) -> None:
        self._path, self._tree = path, tree
        self._home = path.resolve().parent
        if not isinstance(tree.get("run_dir"), str):
            raise InputError(f"{path}: run_dir is missing; it has no default")
        self.folder = (self._home / Path(tree["run_dir"]).expanduser()).resolve()

    def config(
        self,
        phases: list[PhaseTree],
        where: str,
        *,
        seed: int | None,
        run_dir: str,
        overrides: dict[str, Any] | None = None,
        prepared: RunConfig | None = None,
    ) -> RunConfig:
        tree = deepcopy(self._tree)
        for key, value in (overrides or {}).items():
            set_key(tree, key, value, said=f"{self._path}: {where}: {key}")
        tree["phases"], tree["run_dir"] = phases, str(self.folder / run_dir)
        if seed is not None:
            tree["seed"] = seed
        config = check_config(tree, where=f"{self._path}: {where}", folder=self._home)
        if seed is None:
            return config
        return _on_prepared(config, prepared, str(self._path))


def _checked(method: MethodSection, path: Path) -> dict[str, Any]:
    for key in method.overrides:
        shared = next((one for one in _SHARED if key == one or key.startswith(f"{one}.")), None)
        if shared is not None:
            raise InputError(
                f"{path}: compare.methods, {method.name}: overrides has {key}, but {shared} is the same in every run; "
                f"set it once, at the top of the file"
            )
    return method.overrides


def _on_prepared(config: RunConfig, prepared: RunConfig | None, path: str) -> RunConfig:
    """The run with the models and the data that `prepared` leaves, and without a row that was measured there."""
    sources = {
        "data.train": config.data.train,
        "data.held_out": config.data.held_out,
        "student.model": config.student.model,
        "teacher.model": config.teacher.model,
    }
    embedded = [key for key, source in sources.items() if source.startswith("embedded")]
    if prepared is None:
        if embedded:
            raise InputError(
                f"{path}: {embedded[0]} is made anew by every run from its own seed, and compare.prepare is empty; "
                f"expected one preparation that all share. Add a phase to compare.prepare"
            )
        return config
    folder = prepared.run_dir
    made = {
        "data.train": folder / "embedded" / "train.jsonl",
        "data.held_out": folder / "embedded" / "held_out.jsonl",
        "student.model": folder / "student",
        "teacher.model": folder / "embedded" / "teacher",
    }
    found = sources | {key: str(made[key]) for key in embedded}
    for number, phase in enumerate(prepared.phases, start=1):
        if not trains_student(phase):
            found["teacher.model"] = str(folder / "phases" / phase_name(number, phase) / "best")
        else:
            found["student.model"] = str(made["student.model"])
    teacher_row = config.evaluation.teacher_row and not trains_student(prepared.phases[-1])
    return config.model_copy(
        update={
            "student": config.student.model_copy(update={"model": found["student.model"]}),
            "teacher": config.teacher.model_copy(update={"model": found["teacher.model"]}),
            "data": config.data.model_copy(update={"train": found["data.train"], "held_out": found["data.held_out"]}),
            "evaluation": config.evaluation.model_copy(update={"teacher_row": teacher_row}),
        }
    )
