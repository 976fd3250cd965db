"""manifest.json: what a complete checkpoint says of itself. It is written last; a folder without it is none.

It carries the size and the hash of every other file, and the hash of its own content.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from minillm_ray.checkpoint.files import FileRecord, hash_file, write_file

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class BrokenCheckpoint(Exception):
    """What is wrong with a checkpoint, as the end of a sentence."""


@dataclass(frozen=True)
class Manifest:
    """step: optimizer steps done. weight_version: the last one published. files: every file but the manifest."""

    step: int
    weight_version: int
    files: tuple[FileRecord, ...]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write folder/manifest.json. Raises CheckpointError."""
    content = asdict(manifest)
    tree = {"format_version": FORMAT_VERSION, "content": content, "xxh3": _hash(content)}
    write_file(folder, MANIFEST, json.dumps(tree, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`; its files are not looked at. Raises BrokenCheckpoint."""
    try:
        tree: Any = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(f"{MANIFEST} cannot be read ({error})") from None
    if not isinstance(tree, dict) or tree.keys() != {"format_version", "content", "xxh3"}:
        raise BrokenCheckpoint(f"{MANIFEST} is no manifest")
    if tree["format_version"] != FORMAT_VERSION:
        raise BrokenCheckpoint(f"{MANIFEST} has format version {tree['format_version']}, expected {FORMAT_VERSION}")
    content = tree["content"]
    if _hash(content) != tree["xxh3"]:
        raise BrokenCheckpoint(f"{MANIFEST} is not as it was written: its hash differs")
    files = tuple(FileRecord(**row) for row in content["files"])
    return Manifest(content["step"], content["weight_version"], files)


def verify_sizes(folder: Path, files: Sequence[FileRecord]) -> None:
    """Raises BrokenCheckpoint for a file that is missing or has another size; nothing is read."""
    for record in files:
        try:
            size_bytes = (folder / record.name).stat().st_size
        except OSError as error:
            raise BrokenCheckpoint(f"{record.name} is missing ({error.strerror})") from None
        if size_bytes != record.size_bytes:
            raise BrokenCheckpoint(f"{record.name} has {size_bytes} bytes, expected {record.size_bytes}")


def verify_hashes(folder: Path, files: Sequence[FileRecord]) -> None:
    """Raises BrokenCheckpoint for a file whose bytes are not those that were written; reads all of them."""
    for record in files:
        try:
            found = hash_file(folder / record.name)
        except OSError as error:
            raise BrokenCheckpoint(f"{record.name} cannot be read ({error.strerror})") from None
        if found != record.xxh3:
            raise BrokenCheckpoint(f"{record.name} has hash {found}, expected {record.xxh3}")


def _hash(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
