"""From a YAML file and `-s key=value` overrides to a checked RunConfig, or to one line for each mistake."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from minillm_ray.config.errors import InputError
from minillm_ray.config.run import RunConfig

AnySection = TypeVar("AnySection", bound=BaseModel)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:\w+)?")

_PATHS = {"run_dir", "student.model", "teacher.model", "data.train", "data.held_out", "data.plain_text"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in `path` with `section.key=value` overrides applied and its paths made absolute.

    Raises InputError: no such file, not YAML, an unknown key (the nearest known one is named), a value out of range.
    """
    path = Path(path)
    return check_config(read_tree(path, overrides), where=str(path), folder=path.resolve().parent)


def check_config(tree: Mapping[str, Any], *, where: str, folder: Path) -> RunConfig:
    """The configuration that `tree` is, with relative paths starting at `folder`. where: begins each line of an error.

    Raises InputError as `load_config` does.
    """
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {line}" for line in _lines(error))) from None
    return _with_absolute_paths(config, folder)


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a YAML file with `section.key=value` overrides applied, unchecked. Raises InputError."""
    tree = _parse(path)
    for override in overrides:
        _apply(tree, override)
    return tree


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a YAML configuration, such as those in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a YAML configuration in UTF-8") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}; expected sections such as student: and teacher:")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `tree`; a number in the key is an index into a list."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"-s {override}: expected section.key=value, as in -s learner.ranks=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"-s {override}: {text!r} is not a YAML value; quote it") from None
    if key in _PATHS and isinstance(value, str):
        value = _from_here(key, value)
    set_key(tree, key, value, said=f"-s {override}")


def set_key(tree: dict[str, Any], key: str, value: Any, *, said: str) -> None:
    """Set `section.key` in `tree`. said: how the user put it, for the InputError where the key leads nowhere."""
    node: Any = tree
    *parents, last = key.split(".")
    for name in parents:
        node = _child(node, name, said)
    if isinstance(node, list):
        node[_index(node, last, said)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"{said}: {'.'.join(parents)} is {node!r}, which has no keys")


def _from_here(key: str, value: str) -> str:
    """A relative path given on the command line is meant from where the command runs, not from the file."""
    here = Path(value).expanduser().absolute()
    is_path = key == "run_dir" or (value != "embedded" and here.exists())
    return str(here) if is_path else value


def _child(node: Any, name: str, said: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, said)]
    if isinstance(node, dict):
        if node.get(name) is None:
            node[name] = {}
        return node[name]
    raise InputError(f"{said}: {name} cannot be set inside {node!r}")


def _index(node: list[Any], name: str, said: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise InputError(f"{said}: {name!r} is not an entry of this list; expected 0 to {len(node) - 1}")
    return int(name)


def check_section(section: type[AnySection], tree: Any, *, where: str) -> AnySection:
    """`tree` as that section, by itself. Raises InputError; `where` begins each of its lines."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}.{line}" for line in _lines(error, section))) from None


def _lines(error: ValidationError, root: type[BaseModel] = RunConfig) -> list[str]:
    return [_line(list(item["loc"]), item, root) for item in error.errors(include_url=False)]


def _line(location: list[int | str], item: Any, root: type[BaseModel]) -> str:
    # A phase is a union told apart by its kind, which pydantic puts into the location: phases, 0, sft, epochs.
    if len(location) > 2 and location[0] == "phases":
        location = [*location[:2], *location[3:]]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], item, root)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{key} is not a key.{hint} Keys here: {', '.join(known)}"
    if item["type"] == "missing":
        return f"{key} is missing; it has no default"
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    shown = "" if isinstance(value, dict | list) else f" is {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _known_keys(location: list[int | str], item: Any, root: type[BaseModel]) -> list[str]:
    model = root
    if root is RunConfig and location[:1] == ["phases"]:
        kind = item["loc"][2]
        for candidate in get_args(get_args(get_args(RunConfig.model_fields["phases"].annotation)[0])[0]):
            if kind in get_args(candidate.model_fields["kind"].annotation):
                model = candidate
    else:
        for name in (name for name in location if isinstance(name, str)):
            annotation = model.model_fields[name].annotation
            parts = (annotation, *get_args(annotation))  # `Section | None`, or a list of sections
            model = next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
    return list(model.model_fields)


def _with_absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    def data(source: str) -> str:
        return source if source == "embedded" else _absolute(source, folder)

    def model(source: str) -> str:
        return source if source.startswith("embedded:") else _absolute(source, folder)

    text = config.data.plain_text
    return config.model_copy(
        update={
            "run_dir": (folder / config.run_dir.expanduser()).resolve(),
            "student": config.student.model_copy(update={"model": model(config.student.model)}),
            "teacher": config.teacher.model_copy(update={"model": model(config.teacher.model)}),
            "data": config.data.model_copy(
                update={
                    "train": data(config.data.train),
                    "held_out": data(config.data.held_out),
                    "plain_text": text and str((folder / Path(text).expanduser()).resolve()),
                }
            ),
        }
    )


def _absolute(source: str, folder: Path) -> str:
    """A path that exists beside the configuration, else a Hugging Face id as it is, else the absolute path."""
    path = (folder / Path(source).expanduser()).resolve()
    is_hub_id = _HUB_ID.fullmatch(source) and Path(source).suffix not in {".jsonl", ".json", ".parquet"}
    return source if is_hub_id and not path.exists() else str(path)
