"""Who may import whom. Every import statement counts, wherever it stands: in a module, a function or TYPE_CHECKING."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "minillm_ray"

# `remote` is one module, not a room: waiting for Ray with deadlines. What is beyond `/` after a package or room is the
# only module of the importing room that may have it.
ROOMS = {
    "cli": {"config", "phases", "engines", "report"},
    "config": {"pydantic", "yaml"},
    "objective": {"torch"},
    "telemetry": {"config", "pyarrow", "rich", "torch"},
    "report": {"config", "telemetry", "yaml"},
    "data": {"config", "numpy", "pyarrow", "datasets", "tokenizers", "transformers"},
    "engines": {
        *("config", "telemetry", "objective", "data"),
        *("numpy", "torch", "transformers", "vllm", "safetensors", "huggingface_hub", "gguf"),
    },
    "weights": {"config", "numpy", "torch", "xxhash", "ray"},
    "checkpoint": {"config", "data", "numpy", "pydantic", "safetensors", "xxhash"},
    "teacher": {
        *("config", "telemetry", "data", "engines", "mixture", "objective", "numpy", "torch"),
        *("ray/actor", "ray/client", "remote/actor", "remote/client"),
    },
    "mixture": {"config", "engines", "numpy"},
    "rollout": {
        *("config", "telemetry", "data", "engines", "mixture", "weights", "numpy", "torch"),
        *("ray/actor", "ray/client", "remote/actor", "remote/client"),
    },
    "learner": {
        *("config", "telemetry", "data", "engines", "weights", "checkpoint", "objective"),
        *("numpy", "torch", "transformers"),
        *("peft", "safetensors", "ray/actor", "ray/client", "ray/process", "remote/client", "remote/process"),
    },
    "pipeline": {"config", "telemetry", "data", "remote"},
    "evaluation": {
        *("config", "telemetry", "data", "engines", "objective", "remote"),
        *("numpy", "torch", "ray", "rouge_score", "pyarrow"),
    },
    "phases": {
        *("config", "telemetry", "data", "engines", "objective", "weights", "checkpoint", "remote"),
        *("teacher", "rollout", "learner", "mixture", "pipeline", "evaluation", "report"),
        *("numpy", "torch", "transformers", "pyarrow", "ray"),
    },
}
BESIDE = {"remote": {"config", "ray"}, "__main__": {"cli"}, "__init__": set()}
"""Modules at the top of the package."""

LATE = {
    "cli": {"phases", "engines", "report"},
    "telemetry": {"pyarrow", "rich", "torch"},
    "data": {"pyarrow", "datasets", "tokenizers", "transformers"},
    "learner": {"transformers"},
}
"""What a room may import only where it is used, so that importing the room is cheap."""


@dataclass(frozen=True)
class Import:
    """One imported name. target: a room, `remote`, or a package from outside; late: not run when the module is."""

    room: str
    module: str
    target: str
    late: bool
    where: str


def imports_of(path: Path) -> Iterator[Import]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    for node, late in _statements(ast.parse(path.read_text()), late=False):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}: relative import"
        for name in names:
            top, _, rest = name.partition(".")
            if top in sys.stdlib_module_names:
                continue
            inside = top == PACKAGE.name
            target = rest.partition(".")[0] if inside else top
            assert target, f"{path}:{node.lineno}: imports the package itself"
            if inside and target == room:
                continue
            yield Import(room, parts[-1], target, late, f"{path.relative_to(ROOT)}:{node.lineno}")


def _statements(tree: ast.AST, *, late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
        else:
            only_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _statements(node, late=late or only_types or in_function)


FOUND = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def test_every_room_is_in_the_table() -> None:
    """A folder with modules is a room, and a room has its line here."""
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(BESIDE)


def test_no_room_imports_what_it_may_not() -> None:
    """Room by room, beyond the standard library: only what the table says, function-level imports included."""
    table = ROOMS | BESIDE
    wrong = [
        f"{found.where}: {found.room} imports {found.target}"
        for found in FOUND
        if not {found.target, f"{found.target}/{found.module}"} & table[found.room]
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_only_where_they_are_used() -> None:
    """`minillm-ray --help`, an error in a configuration and a worker's start do not wait for them."""
    wrong = [
        f"{found.where}: {found.target} at module level"
        for found in FOUND
        if not found.late and found.target in LATE.get(found.room, ())
    ]
    assert not wrong, "\n".join(wrong)


def test_vllm_stays_in_engines_and_nothing_imports_cli() -> None:
    """The two absolute rules, without the table."""
    assert {found.room for found in FOUND if found.target == "vllm"} == {"engines"}
    assert {found.room for found in FOUND if found.target == "cli"} == {"__main__"}


def test_no_two_rooms_need_each_other() -> None:
    """Dependencies point one way: two rooms that import each other are one room."""
    edges = {(found.room, found.target) for found in FOUND if found.target in ROOMS}
    closed = set(edges)
    while more := {(a, d) for a, b in closed for c, d in edges if b == c} - closed:
        closed |= more
    assert not {(a, b) for a, b in closed if a == b}


def test_the_walk_sees_imports_in_functions_and_under_type_checking() -> None:
    """The parser above finds what it is trusted to find, and knows what is late."""
    source = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    if x:\n        from c.d import e\n"
    found = [
        (ast.unparse(node), late) for node, late in _statements(ast.parse(source + "if y:\n    import g\n"), late=False)
    ]
    assert found == [("import a", False), ("import b", True), ("from c.d import e", True), ("import g", False)]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("minillm_ray.config", {"torch", "ray", "numpy", "transformers", "vllm"}),
        ("minillm_ray.cli", {"torch", "ray", "numpy", "transformers", "vllm"}),
        ("minillm_ray.data", {"torch", "ray", "transformers", "pyarrow", "datasets", "vllm"}),
        ("minillm_ray.pipeline.admission", {"torch", "ray", "transformers", "vllm"}),
        ("minillm_ray.pipeline.ledger", {"torch", "ray", "transformers", "vllm"}),
        ("minillm_ray.phases.control", {"torch", "ray", "numpy", "transformers", "rich", "vllm"}),
        ("minillm_ray.checkpoint.folder", {"torch", "ray", "transformers", "pyarrow", "vllm"}),
        ("minillm_ray.checkpoint.trajectories", {"torch", "ray", "transformers", "pyarrow", "vllm"}),
        ("minillm_ray.objective", {"ray", "transformers", "vllm", "pydantic"}),
    ],
)
def test_importing_a_room_loads_nothing_it_may_not_have(module: str, absent: set[str]) -> None:
    """The same promise with everything that is imported on the way, in a process of its own."""
    program = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
