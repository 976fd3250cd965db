"""Bad input gets one message on stderr and status 2; nothing is written, started or shown as a traceback.

These go through `main` with a cluster that does not exist: only its start and end are answered.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted.cluster import ScriptedCluster
from scripted.models import WORDS, save_tiny_folder

from minillm_ray.cli import main
from minillm_ray.config import InputError, load_config
from minillm_ray.config.errors import RunError, Terminated
from minillm_ray.config.load import dump_config
from minillm_ray.phases.run_folder import owned
from minillm_ray.weights.buffers import WeightMismatchError

WriteRun = Callable[..., Path]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("own_process_state")


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """Everything below the folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(
    run_folder: Path, scripted_cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command line that has to be refused; returns the message. Nothing in run_folder may change."""

    def run(*arguments: str | Path) -> str:
        before = tree_of(run_folder)
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert status == 2, output
        assert output.out == ""
        assert "Traceback" not in output.err
        assert output.err.endswith("\n")
        assert tree_of(run_folder) == before
        assert scripted_cluster.calls in ([], ["init", "shutdown"])
        return output.err.removesuffix("\n")

    return run


def require(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "\n" not in message


def test_an_unknown_key_is_refused_with_the_nearest(refused: Refused, write_run: WriteRun) -> None:
    """objective.gama -> gamma, and the keys that are known."""
    path = write_run(objective__gama=1)
    require(refused("train", path), f"{path}: objective.gama is not a key. Did you mean gamma? Keys here: ")


def test_a_missing_configuration_is_refused(refused: Refused, run_folder: Path) -> None:
    """With the path, and what was expected."""
    path = run_folder / "none.yaml"
    require(refused("train", path), f"{path} does not exist; expected a YAML configuration")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_missing_model_folder_is_refused(role: str, refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """With the role, the path and where relative paths start."""
    path = write_run()
    shutil.rmtree(run_folder / role)
    require(
        refused("train", path),
        f"{role}: {run_folder / role} is not there; expected a model folder or a Hugging Face id",
        "Check the path",
    )


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_folder_without_weights_is_refused(
    role: str, refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """With the file names that were looked for."""
    path = write_run()
    (run_folder / role / "model.safetensors").unlink()
    require(
        refused("train", path),
        f"{role}: {run_folder / role} has no weights; expected model.safetensors",
        "Copy or download the weights",
    )


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_a_broken_line_is_refused_with_file_and_line(
    name: str, refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """Line 3, and what JSON objected to."""
    path = write_run()
    with (run_folder / name).open("a") as file:
        file.write('{"instruction": "say a", \n')
    require(
        refused("train", path),
        f"{run_folder / name}:3: broken JSON",
        "expected one JSON object on each line",
        "Correct or remove the line",
    )


@pytest.mark.parametrize("row", [{"input": "x"}, {"instruction": " \n"}, {"instruction": None, "output": "y"}])
def test_a_row_without_instruction_is_refused(
    row: dict[str, Any], refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """Missing, blank or null; with file and line, and the fields that are there."""
    path = write_run()
    (run_folder / "train.jsonl").write_text('{"instruction": "say a"}\n' + json.dumps(row) + "\n")
    require(
        refused("train", path),
        f"{run_folder / 'train.jsonl'}:2: no instruction",
        f"fields here: {', '.join(row)}",
        "rename the field, or remove the row",
    )


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_data_set_is_refused(content: str, refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """No bytes, or blank lines alone."""
    path = write_run()
    (run_folder / "held_out.jsonl").write_text(content)
    require(refused("train", path), f"{run_folder / 'held_out.jsonl'} holds no rows; expected at least one")


def test_a_missing_data_file_is_refused(refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """With the path that was looked for."""
    path = write_run()
    (run_folder / "train.jsonl").unlink()
    require(refused("train", path), f"{run_folder / 'train.jsonl'} does not exist", "expected a .jsonl", "Correct")


@pytest.mark.parametrize(
    ("file", "phase"),
    [
        ("train.jsonl", {"kind": "sft", "model": "student"}),
        ("train.jsonl", {"kind": "kd"}),
        ("held_out.jsonl", {"kind": "seqkd"}),
        ("held_out.jsonl", {"kind": "minillm", "steps": 64, "evaluate_every": 1, "select": "rouge_l"}),
    ],
)
def test_a_row_without_output_is_refused_where_a_phase_needs_it(
    file: str, phase: dict[str, Any], refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """To train on it, or to judge by it; MiniLLM alone does neither, so the same file is fine there."""
    (run_folder / file).write_text('{"instruction": "say a"}\n')
    path = write_run(phases=[phase])
    require(refused("train", path), f"{run_folder / file}:1: no output", "expected the right answer as text")


def test_different_tokenizers_are_refused_with_the_first_id_that_differs(
    refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """`b` and `c` have changed places: ids 2 and 3 differ, 2 is named with both its tokens."""
    path = write_run()
    shutil.rmtree(run_folder / "teacher")
    save_tiny_folder(run_folder / "teacher", words=("<eos>", "a", "c", "b", "say"))
    require(
        refused("train", path),
        "differ first at id 2: the student has 'b', the teacher 'c'",
        "(5 and 5 tokens)",
        "expected the same token at every id",
        "minillm-ray prune",
    )


def test_a_tokenizer_with_one_token_more_is_refused(refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """The first differing id is the one that only the teacher has."""
    path = write_run()
    shutil.rmtree(run_folder / "teacher")
    save_tiny_folder(run_folder / "teacher", words=(*WORDS, "extra"))
    require(refused("train", path), "differ first at id 5: the student has nothing, the teacher 'extra'")


def test_a_tokenizer_without_an_end_token_is_refused(refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """In both models alike, so that the two agree: still no response could ever end."""
    path = write_run()
    for role in ("student", "teacher"):
        file = run_folder / role / "tokenizer_config.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token"}))
    require(refused("train", path), "has no EOS token", "Set eos_token in its tokenizer_config.json")


def test_a_prompt_limit_below_the_template_is_refused(refused: Refused, run_folder: Path, write_run: WriteRun) -> None:
    """Alpaca's own words are more than 8 tokens: no prompt could ever fit."""
    path = write_run(data__template="alpaca", data__max_prompt_tokens=8)
    require(
        refused("train", path),
        "max_prompt_tokens is 8, but the template 'alpaca' takes",
        "Raise max_prompt_tokens",
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rollout__replicas": 9},
            "rollout.replicas=9 x rollout.cpus=1 needs 9 CPUs; the cluster has 4. Set rollout.replicas=4",
        ),
        (
            {"teacher__replicas": 5},
            "teacher.replicas=5 x teacher.cpus=1 needs 5 CPUs; the cluster has 4. Set teacher.replicas=4",
        ),
        ({"ray__device": "gpu"}, "rollout.replicas=1 x 1 + teacher.replicas=1 x 1 + learner.ranks=1 x 1 needs 3 GPUs"),
    ],
)
def test_too_many_replicas_are_refused_before_anything_starts(
    changes: dict[str, Any],
    says: str,
    refused: Refused,
    write_run: WriteRun,
    scripted_cluster: ScriptedCluster,
) -> None:
    """What is asked, what is there, what would fit."""
    require(refused("train", write_run(**changes)), says, "the cluster has ", "add nodes")
    assert scripted_cluster.calls == []


def test_a_run_folder_that_holds_something_else_is_refused(
    refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """It is never written over; the message names both ways on."""
    path = write_run()
    (run_folder / "run").mkdir()
    (run_folder / "run" / "notes.txt").touch()
    require(
        refused("train", path),
        f"run_dir {run_folder / 'run'} holds no run, but is not empty; expected a new folder",
        "Add --fresh",
        "-s run_dir=OTHER",
    )


def test_a_run_that_computed_something_else_is_not_continued(
    refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """Each setting with what it was and what it is now, before the cluster is started."""
    path = write_run()
    (run_folder / "run").mkdir()
    (run_folder / "run" / "config.yaml").write_text(dump_config(load_config(path)))
    message = refused("train", path, "-s", "seed=11", "-s", "objective.gamma=0.5")
    assert message.splitlines() == [
        f"run_dir {run_folder / 'run'} holds a run with other settings; it cannot be continued with these:",
        "  objective.gamma: was None, is 0.5",
        "  seed: was 10, is 11",
        "Set them back. Add --fresh to move it aside, or choose another: -s run_dir=OTHER",
    ]


def test_a_run_that_another_command_is_at_is_not_continued(
    refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """Two drivers would write into each other's checkpoints."""
    path = write_run()
    (run_folder / "run").mkdir()
    (run_folder / "run" / "config.yaml").write_text(dump_config(load_config(path)))
    with owned(run_folder / "run"):
        require(refused("train", path), "is in use by another train (process ", "Wait for it, stop it, or choose")


@pytest.mark.parametrize("flags", [(), ("--fresh",)])
def test_a_run_folder_that_is_a_file_is_refused(
    flags: tuple[str, ...], refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """Whatever it holds, and also where an earlier run would be moved aside."""
    path = write_run()
    (run_folder / "run").touch()
    require(refused("train", path, *flags), f"run_dir {run_folder / 'run'} is a file; expected a folder")


def test_an_objective_that_contradicts_itself_is_refused(refused: Refused, write_run: WriteRun) -> None:
    """Two switches that exclude each other, with the remedy."""
    path = write_run(objective={"alpha": 0, "long_term_weight": "product", "clip_on": "policy"})
    require(refused("train", path), "objective.long_term_weight=product with clip_on=policy", "set clip_on=none")


def test_an_unreachable_cluster_is_refused(
    refused: Refused, write_run: WriteRun, scripted_cluster: ScriptedCluster
) -> None:
    """With its address and all ways out."""
    scripted_cluster.refuses = ConnectionError("no answer\nand a long log")
    require(
        refused_without_shutdown(refused, write_run(ray__address="10.0.0.1:6379"), scripted_cluster),
        "no Ray cluster answers at 10.0.0.1:6379 (no answer)",
        "correct ray.address or RAY_ADDRESS",
    )


def refused_without_shutdown(refused: Refused, path: Path, cluster: ScriptedCluster) -> str:
    """A cluster that was never reached is not shut down."""
    cluster.calls = _Ignored()
    return refused("train", path)


class _Ignored(list[str]):
    """Calls that do not count."""

    def append(self, call: str) -> None:
        pass


def test_a_refused_fresh_run_leaves_the_earlier_one_where_it_is(
    refused: Refused, run_folder: Path, write_run: WriteRun
) -> None:
    """--fresh moves an earlier run aside for a run that begins, not for one that is refused."""
    path = write_run()
    (run_folder / "run").mkdir()
    (run_folder / "run" / "metrics.jsonl").write_text("{}\n")
    (run_folder / "held_out.jsonl").write_text("")
    require(refused("train", path, "--fresh"), "holds no rows")


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_quick_start_leaves_no_data_behind(
    existed: bool, refused: Refused, run_folder: Path, write_run: WriteRun, few_embedded_rows: None
) -> None:
    """Its data is made before the models are looked at; the run folder is as it was, absent or empty."""
    if existed:
        (run_folder / "run").mkdir()
    embedded = {"train": "embedded", "held_out": "embedded", "template": "bare", "max_prompt_tokens": 32}
    path = write_run(data=embedded, student={"model": "embedded:giant"})
    require(refused("train", path), "student.model is embedded:giant; expected embedded:teacher")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{model}", "--data", "{data}", "--out", "x.txt"], "--out x.txt: expected a file that ends in .jsonl or"),
        (["{model}", "--data", "{data}", "--out", "{data}"], "exists; give the name of a new file"),
        (["{model}", "--data", "{data}", "--out", "{new}", "--limit", "0"], "--limit is 0; expected more than 0"),
        (["{model}", "--data", "{data}", "--out", "{new}", "--temperature", "0"], "--temperature is 0.0; expected"),
        (["{model}", "--data", "{data}", "--out", "{new}", "--max-response-tokens", "-1"], "is -1; expected more"),
        (["{model}", "--data", "{new}", "--out", "{new}"], "new.jsonl does not exist"),
        (["{new}", "--data", "{data}", "--out", "{new}"], "MODEL: "),
    ],
)
def test_generate_refuses_what_it_cannot_do(
    arguments: list[str], says: str, refused: Refused, run_folder: Path
) -> None:
    """Before an engine is loaded; no output file appears."""
    names = {
        "model": run_folder / "student",
        "data": run_folder / "train.jsonl",
        "new": run_folder / "new.jsonl",
    }
    require(refused("generate", *[argument.format(**names) for argument in arguments]), says)


def test_prune_and_convert_refuse_what_is_not_there(refused: Refused, run_folder: Path) -> None:
    """The same form for every command."""
    out = run_folder / "out"
    require(refused("prune", run_folder / "none", out, "--keep-layers", "2"), f"{run_folder / 'none'}")
    require(refused("convert-gguf", run_folder / "none.gguf", out), f"{run_folder / 'none.gguf'}")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["train", "x.yaml", "--frehs"], ["generate", "m"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own errors keep to the same status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: minillm-ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("bad\nworse"), 2, "bad\nworse\n"),
        (RunError("teacher 0 died"), 1, "The run failed: teacher 0 died\n"),
        (WeightMismatchError("step 3: off"), 1, "The run failed: step 3: off\n"),
        (KeyboardInterrupt(), 130, "Interrupted; every actor was stopped.\n"),
        (Terminated(), 143, "Stopped by SIGTERM; every actor was stopped.\n"),
    ],
)
def test_each_kind_of_end_has_its_status_and_its_message(
    error: BaseException,
    status: int,
    says: str,
    write_run: WriteRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input 2, a run that could not go on 1, Ctrl-C 130, SIGTERM 143; never a traceback."""

    def run(config: object, *, fresh: bool) -> None:
        raise error

    monkeypatch.setattr("minillm_ray.phases.run.run", run)
    assert main(["train", str(write_run())]) == status
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", says)


def test_a_defect_of_our_own_is_not_hidden(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected keeps its traceback."""

    def run(config: object, *, fresh: bool) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("minillm_ray.phases.run.run", run)
    with pytest.raises(ZeroDivisionError):
        main(["train", str(write_run())])
