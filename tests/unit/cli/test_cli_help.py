"""--help and --dry-run answer at once: neither loads what a run needs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from minillm_ray.cli import main
from minillm_ray.config.load import load_config

ROOT = Path(__file__).parents[3]
WriteRun = Callable[..., Path]
HEAVY = {"ray", "vllm", "torch", "transformers", "numpy"}


def run_and_list_heavy(*arguments: str | Path) -> tuple[int, str, set[str]]:
    """Exit status and output of a command in a process of its own, and what of HEAVY it imported."""
    program = (
        "import sys\n"
        "from minillm_ray.cli import main\n"
        "try:\n"
        "    status = main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stdout, set(done.stderr.split())


def test_a_dry_run_prints_the_resolved_configuration_and_the_placement(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overrides and absolute paths included; what is printed above the placement reads back equal."""
    path = write_run()
    overrides = ["rollout.replicas=3", "teacher.cpus=2"]
    assert main(["train", str(path), "--dry-run", "-s", overrides[0], "-s", overrides[1]]) == 0
    printed, _, placement = capsys.readouterr().out.partition("placement ")
    copy = tmp_path / "copy.yaml"
    copy.write_text(printed)
    assert load_config(copy) == load_config(path, overrides)
    assert yaml.safe_load(printed)["run_dir"] == str(tmp_path / "run")
    lines = placement.splitlines()
    assert lines[0] == "(cpu; ray.device is auto):"
    assert [line.split() for line in lines[1:]] == [
        ["rollout", "3", "x", "1", "CPU"],
        ["teacher", "1", "x", "2", "CPU"],
        ["learner", "1", "x", "1", "CPU"],
    ]


def test_a_dry_run_loads_nothing_and_writes_nothing(write_run: WriteRun, tmp_path: Path) -> None:
    """Neither Ray nor a model library, at most torch for the objective; the models and data do not even exist."""
    path = write_run()
    status, output, heavy = run_and_list_heavy("train", path, "--dry-run")
    assert (status, heavy - {"numpy", "torch"}) == (0, set())
    assert "placement (cpu" in output
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def test_a_dry_run_says_when_a_cpu_cluster_cannot_hold_it(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the file is status 2 here as well."""
    assert main(["train", str(write_run(rollout__tensor_parallel=2)), "--dry-run"]) == 2
    assert "rollout.tensor_parallel is 2; expected 1 where there is no GPU" in capsys.readouterr().err


def comparison(path: Path, **overrides: bool) -> Path:
    """The run file made a comparison of one method over two seeds."""
    tree = yaml.safe_load(path.read_text())
    method = {"name": "mini", "phases": tree.pop("phases"), "overrides": overrides}
    path.write_text(yaml.safe_dump(tree | {"compare": {"seeds": [1, 2], "methods": [method]}}))
    return path


def test_a_dry_run_of_a_comparison_lists_its_runs(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folder and phases of each; nothing is written."""
    assert main(["compare", str(comparison(write_run())), "--dry-run", "-s", "compare.seeds=[3, 4]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{tmp_path / 'run' / 'mini' / f'seed-{seed}'}: minillm" for seed in (3, 4)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def test_a_comparison_with_switches_that_contradict_each_other_is_refused_first(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an hour of other runs."""
    path = comparison(write_run(), **{"objective.single_step": False})
    assert main(["compare", str(path)]) == 2
    assert "objective.single_step=false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_wrong_configuration_is_refused_without_loading_anything(write_run: WriteRun) -> None:
    """A typo costs a fraction of a second."""
    path = write_run(objective__gama=1)
    done = subprocess.run(
        [sys.executable, "-m", "minillm_ray", "train", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{path}: objective.gama is not a key. Did you mean gamma?")
    assert done.stderr.count("\n") == 1


def test_help_lists_every_command_and_loads_nothing() -> None:
    """One process for both promises."""
    status, output, heavy = run_and_list_heavy("--help")
    assert (status, heavy - {"numpy", "torch"}) == (0, set())
    for command in ("train", "compare", "evaluate", "generate", "report", "status", "scale", "convert-gguf", "prune"):
        assert command in output


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ["CONFIG", "--set", "--dry-run", "--fresh"]),
        ("compare", ["CONFIG", "--set", "--dry-run"]),
        ("evaluate", ["MODEL", "--data", "--teacher", "--seeds", "--out", "--no-repeat-ngram", "--batch-tokens"]),
        ("generate", ["MODEL", "--data", "--out", "--template", "--temperature", "--seed", "--limit"]),
        ("report", ["RUN"]),
        ("status", ["RUN"]),
        ("scale", ["RUN", "ROLE=N", "rollout=4", "teacher=2"]),
        ("convert-gguf", ["FILE", "OUT"]),
        ("prune", ["TEACHER", "OUT", "--keep-layers"]),
    ],
)
def test_each_command_has_its_help(command: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With every argument."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for flag in flags:
        assert flag in output
