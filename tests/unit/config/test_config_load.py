"""A configuration file is read whole, checked whole, and every mistake is one line that says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minillm_ray.config import InputError, RunConfig, load_config
from minillm_ray.config.load import dump_config
from minillm_ray.config.phases import MiniLLMPhase, SftPhase

CONFIGS = Path(__file__).parents[3] / "configs"
RUN_FILES = sorted(path for path in CONFIGS.glob("*.yaml") if "compare" not in yaml.safe_load(path.read_text()))
"""Comparisons have tests of their own."""
WriteRun = Callable[..., Path]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_every_shipped_run_file_parses(path: Path) -> None:
    """And names a folder of its own, so that two of them can run side by side."""
    assert load_config(path).run_dir.name == path.stem


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("studnet", "studnet is not a key. Did you mean student? Keys here: run_dir, phases, "),
        ("objective__gama", "objective.gama is not a key. Did you mean gamma? Keys here: preset, alpha, gamma"),
        ("data__max_promt_tokens", "data.max_promt_tokens is not a key. Did you mean max_prompt_tokens? Keys here: "),
        ("learner__beta", "learner.beta is not a key. Did you mean betas? Keys here: ranks, cpus"),
        ("ray__zzz", "ray.zzz is not a key. Keys here: address, device, object_store_gb"),
        ("learner__lora__rnk", "learner.lora.rnk is not a key. Did you mean rank? Keys here: rank, alpha"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key: str, says: str, write_run: WriteRun) -> None:
    """At the top and inside a section, with the keys that are known there; a key like no other gets no guess."""
    path = write_run(**{key: 1})
    assert f"{path}: {says}" in refusal(path)


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        ({"kind": "minillm", "steps": 1, "rolouts": 4}, "phases.0.rolouts is not a key. Did you mean rollouts?"),
        ({"kind": "sft", "model": "student", "epoch": 4}, "phases.0.epoch is not a key. Did you mean epochs?"),
        ({"kind": "sft", "model": "student", "steps": 4}, "phases.0.steps is not a key."),
    ],
)
def test_an_unknown_key_of_a_phase_is_looked_up_in_that_kind_of_phase(
    phase: dict[str, Any], says: str, write_run: WriteRun
) -> None:
    """`steps` is a key of minillm but not of sft, and the keys listed are those of sft."""
    message = refusal(write_run(phases=[phase]))
    model = SftPhase if phase["kind"] == "sft" else MiniLLMPhase
    assert says in message
    assert message.endswith("Keys here: " + ", ".join(model.model_fields))


def test_every_mistake_has_its_own_line(write_run: WriteRun) -> None:
    """Three mistakes in one file are reported at once, each with the file's name."""
    path = write_run(objective__gama=1, learner__ranks=0, phases=[{"kind": "sft", "model": "both"}])
    lines = refusal(path).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner__ranks": "many"}, "learner.ranks is 'many': input should be a valid integer"),
        ({"learner__ranks": 0}, "learner.ranks is 0: input should be greater than or equal to 1"),
        ({"learner__ranks": 1.5}, "learner.ranks is 1.5: input should be a valid integer"),
        ({"learner__eps": float("nan")}, "learner.eps is nan: input should be a finite number"),
        ({"learner__betas": [0.9]}, "learner.betas.1 is missing"),
        ({"checkpoint__every_steps": 0}, "checkpoint.every_steps is 0: input should be greater than or equal to 1"),
        ({"checkpoint__keep": 0}, "checkpoint.keep is 0: input should be greater than or equal to 1"),
        ({"objective__preset": "papers"}, "objective.preset is 'papers': input should be 'default', 'paper'"),
        ({"objective__alpha": 1.1}, "objective.alpha is 1.1: input should be less than or equal to 1"),
        ({"objective__clip_eps": 1}, "objective.clip_eps is 1: input should be less than 1"),
        ({"rollout": None}, "rollout is None: input should be a valid dictionary"),
        ({"student": "gpt2"}, "student is 'gpt2': input should be a valid dictionary"),
        ({"phases": []}, "phases: list should have at least 1 item"),
        ({"phases": [{"kind": "rl"}]}, "expected tags: 'sft', 'kd', 'seqkd', 'minillm'"),
        ({"seed": -1}, "seed is -1: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(changes: dict[str, Any], says: str, write_run: WriteRun) -> None:
    """Key, value and expectation, in one line."""
    message = refusal(write_run(**changes))
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("section", ["run_dir", "phases", "student", "teacher", "data"])
def test_a_missing_section_is_named(section: str, write_run: WriteRun, run_tree: dict[str, Any]) -> None:
    """What has no default has to be there."""
    del run_tree[section]
    assert refusal(write_run()).endswith(f": {section} is missing; it has no default")


def test_a_missing_key_is_named_with_its_section(write_run: WriteRun) -> None:
    """Inside a section and inside a phase."""
    message = refusal(write_run(student={}, phases=[{"kind": "minillm"}]))
    assert "student.model is missing" in message
    assert "phases.0.steps is missing" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: [1", "is not YAML: while parsing"),
        (b"- 1\n", "holds list; expected sections such as student:"),
        (b"", "holds NoneType; expected sections"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    """Broken YAML, another kind of YAML, an empty file, bytes that are no text: one line each."""
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert says in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    """With the path, and where configurations are."""
    assert "does not exist; expected a YAML configuration" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_overrides_set_sections_list_entries_and_new_sections(write_run: WriteRun) -> None:
    """A dotted key reaches into sections, a number into a list, and the value is YAML."""
    config = load_config(
        write_run(),
        [
            "phases.0.steps=7",
            "learner.betas=[0.5, 0.6]",
            "evaluation.prompts=3",
            "seed=4",
            "learner.lora={rank: 2, alpha: 4}",
        ],
    )
    assert isinstance(config.phases[0], MiniLLMPhase)
    assert config.phases[0].steps == 7
    assert config.learner.betas == (0.5, 0.6)
    assert config.evaluation.prompts == 3
    assert config.seed == 4
    assert config.learner.lora is not None
    assert config.learner.lora.rank == 2


def test_overrides_reach_into_a_section_that_the_file_leaves_out_or_null(write_run: WriteRun) -> None:
    """Key by key."""
    for path in (write_run(), write_run(learner__lora=None)):
        lora = load_config(path, ["learner.lora.rank=8", "learner.lora.alpha=16"]).learner.lora
        assert lora is not None
        assert (lora.rank, lora.alpha) == (8, 16.0)


def test_a_later_override_wins(write_run: WriteRun) -> None:
    """They are applied in the order of the command line."""
    assert load_config(write_run(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "-s seed: expected section.key=value"),
        ("=1", "-s =1: expected section.key=value"),
        ("seed=[1", "'[1' is not a YAML value"),
        ("phases.3.steps=1", "'3' is not an entry of this list; expected 0 to 0"),
        ("phases.last.steps=1", "'last' is not an entry of this list; expected 0 to 0"),
        ("run_dir.x=1", "run_dir is 'run', which has no keys"),
        ("run_dir.x.y=1", "x cannot be set inside 'run'"),
        ("learner.rank=2", "learner.rank is not a key. Did you mean ranks?"),
        ("phases.0.step=2", "phases.0.step is not a key. Did you mean steps?"),
        ("lerner.ranks=2", "lerner is not a key. Did you mean learner?"),
    ],
)
def test_a_wrong_override_says_why(override: str, says: str, write_run: WriteRun) -> None:
    """Bad form, no such entry, no such key."""
    assert says in refusal(write_run(), override)


def test_paths_are_relative_to_the_file_not_to_the_working_folder(
    write_run: WriteRun, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Models, data and run_dir come out absolute, wherever the command is run."""
    path = write_run(run_dir="../runs/x", data__held_out="deep/held_out.jsonl", data__plain_text="text.txt")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = load_config(path)
    assert config.run_dir == run_folder.parent / "runs" / "x"
    assert config.student.model == str(run_folder / "student")
    assert config.teacher.model == str(run_folder / "teacher")
    assert config.data.train == str(run_folder / "train.jsonl")
    assert config.data.held_out == str(run_folder / "deep" / "held_out.jsonl")
    assert config.data.plain_text == str(run_folder / "text.txt")


def test_a_tilde_is_the_home_folder(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every path."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(write_run(run_dir="~/run", teacher__model="~/teacher", data__train="~/x.jsonl"))
    home = tmp_path / "home"
    assert (config.run_dir, config.teacher.model) == (home / "run", str(home / "teacher"))
    assert config.data.train == str(home / "x.jsonl")


def test_hub_ids_and_embedded_sources_are_left_alone(write_run: WriteRun) -> None:
    """owner/name is a Hugging Face id where no such folder exists; a data id may name its split."""
    config = load_config(
        write_run(
            student__model="embedded:student",
            teacher__model="HuggingFaceTB/SmolLM2-135M-Instruct",
            data__train="owner/set:train",
            data__held_out="embedded",
        )
    )
    assert (config.student.model, config.teacher.model) == ("embedded:student", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (config.data.train, config.data.held_out) == ("owner/set:train", "embedded")


def test_embedded_data_is_not_a_folder_of_that_name(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder has one, and neither the file nor an override given there means it."""
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    config = load_config(write_run(data__held_out="embedded"), ["data.train=embedded"])
    assert (config.data.train, config.data.held_out) == ("embedded", "embedded")


def test_what_looks_like_a_hub_id_but_is_here_or_is_a_data_file_is_a_path(write_run: WriteRun, tmp_path: Path) -> None:
    """models/small exists beside the file; data/train.jsonl is a file's name whether it exists or not."""
    (tmp_path / "models" / "small").mkdir(parents=True)
    config = load_config(write_run(student__model="models/small", data__train="data/train.jsonl"))
    assert config.student.model == str(tmp_path / "models" / "small")
    assert config.data.train == str(tmp_path / "data" / "train.jsonl")


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_a_dumped_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    """From any folder: every path in it is absolute."""
    config = load_config(path, ["learner.eps=1e-9", "learner.betas=[0.8, 0.99]"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


def test_a_dump_shows_every_setting_defaults_included(write_run: WriteRun) -> None:
    """What a run leaves in config.yaml needs no knowledge of this version's defaults."""
    dumped = dump_config(load_config(write_run()))
    for name, field in RunConfig.model_fields.items():
        assert f"\n{name}:" in f"\n{dumped}"
        for key in getattr(field.annotation, "model_fields", ()):
            assert f"\n  {key}:" in dumped


def test_a_loaded_configuration_never_changes(write_run: WriteRun) -> None:
    """Sections are frozen."""
    config = load_config(write_run())
    with pytest.raises(ValueError, match="frozen"):
        config.learner.ranks = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (
            {"steps": 1, "rollouts": 10, "minibatch": 4},
            "rollouts=10 is not a multiple of minibatch=4; set rollouts=8",
        ),
        (
            {"steps": 1, "rollouts": 2, "minibatch": 4},
            "rollouts=2 is not a multiple of minibatch=4; set rollouts=4",
        ),
        (
            {"steps": 7, "rollouts": 8, "minibatch": 4, "inner_epochs": 2},
            "steps=7 is not a multiple of the 4 optimizer steps of one round (rollouts / minibatch * inner_epochs); "
            "set steps=4",
        ),
        (
            {"steps": 1, "rollouts": 8, "minibatch": 4},
            "steps=1 is not a multiple of the 2 optimizer steps of one round (rollouts / minibatch * inner_epochs); "
            "set steps=2",
        ),
    ],
)
def test_sizes_that_do_not_divide_name_the_nearest_that_do(
    sizes: dict[str, int], says: str, write_run: WriteRun
) -> None:
    """Whole minibatches in a round, whole rounds in a phase; the remedy is itself accepted."""
    message = refusal(write_run(phases=[{"kind": "minillm", **sizes}]))
    assert says in message
    name, value = message.rpartition("set ")[2].split("=")
    phase = load_config(write_run(phases=[{"kind": "minillm", **sizes, name: int(value), "steps": 4}])).phases[0]
    assert isinstance(phase, MiniLLMPhase)
    assert phase.steps % phase.steps_a_round == 0


def test_a_round_has_minibatches_times_inner_epochs_steps(write_run: WriteRun) -> None:
    """256 rollouts in minibatches of 64, four times over: the paper's 16 steps a round."""
    sizes = {"steps": 32, "rollouts": 256, "minibatch": 64, "inner_epochs": 4}
    phase = load_config(write_run(phases=[{"kind": "minillm", **sizes}])).phases[0]
    assert isinstance(phase, MiniLLMPhase)
    assert phase.steps_a_round == 16
