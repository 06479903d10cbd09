"""The manifest of a checkpoint: size and checksum of every file, and which of them this process has verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from core.durable import write_durably

SCHEMA = 2  # 1 had one file for all tensors
MANIFEST, TENSORS = "manifest.json", "tensors"


def write_manifest(folder: Path, step: int, files: dict[str, dict[str, int | str]]) -> None:
    """Of the files that were written, as `describe` tells of each."""
    write_durably(folder / MANIFEST, _text(step, files, SCHEMA))


def part_of(name: str) -> str:
    """The part of a state that a file holds; "" for what lies beside the parts."""
    top, _, rest = name.partition("/")
    part, inside, _ = rest.partition("/")
    return part if top == TENSORS and inside else ""


class Verifier:
    """Compares the folders of one run's checkpoints with their manifests, and hashes no file twice."""

    def __init__(self):
        self._found: dict[tuple[Path, str], str | None] = {}  # folder and file -> what is wrong with its content

    def problem(self, folder: Path, step: int, parts: Container[str] | None = None) -> str | None:
        """What is wrong with the files of a checkpoint, beginning with the name of the file; None if it is intact.

        Args:
            parts: those that are looked at beside what lies beside them; None for every one.
        """
        try:
            schema, belongs, listed = _read(folder)
            if schema != SCHEMA:
                return f"{MANIFEST}: schema {schema}, this version reads {SCHEMA}"
            if belongs != step:
                return f"{MANIFEST}: it belongs to step {belongs}"
            found = files_of(folder)
            for name in sorted({*listed, *found}):
                if parts is not None and part_of(name) and part_of(name) not in parts:
                    continue
                if name not in found:
                    return f"{name}: missing"
                if name not in listed:
                    return f"{name}: not in the manifest"
                if (folder, name) not in self._found:
                    self._found[folder, name] = _content_problem(name, found[name], listed[name])
                if problem := self._found[folder, name]:
                    return problem
        except OSError as error:
            return f"{Path(error.filename or folder).name}: cannot be read ({error.strerror})"
        except (ValueError, KeyError, TypeError):  # not text, not JSON, or not our JSON
            return f"{MANIFEST}: its content is damaged"
        return None

    def written(self, folder: Path) -> None:
        """Note that this process has just written all of a folder."""
        self.forget(folder)
        self._found |= {(folder, name): None for name in files_of(folder)}

    def forget(self, folder: Path) -> None:
        """Let everything in a folder be read again."""
        self._found = {key: problem for key, problem in self._found.items() if key[0] != folder}


def listed_files(folder: Path) -> list[str]:
    """The files that a manifest names; none where it is damaged."""
    try:
        return list(_read(folder)[2])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def files_of(folder: Path) -> dict[str, Path]:
    """Relative name -> path of every file of a checkpoint but the manifest."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != MANIFEST}


def describe(path: Path) -> dict[str, int | str]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": checksum}


def encode(content: dict[str, Any], sort_keys: bool = True) -> str:
    return json.dumps(content, indent=1, sort_keys=sort_keys) + "\n"


def is_of_other_version(folder: Path) -> bool:
    """Whether the manifest is intact and of another schema."""
    try:
        return _read(folder)[0] != SCHEMA
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read(folder: Path) -> tuple[int, int, dict[str, dict[str, Any]]]:
    """(schema, step, name -> size and checksum of every file that was written). Raises ValueError where damaged."""
    text = (folder / MANIFEST).read_text()
    manifest = json.loads(text)
    schema, step, files = manifest["schema"], manifest["step"], manifest["files"]
    if text != _text(step, files, schema):
        raise ValueError
    return schema, step, files


def _text(step: int, files: dict[str, dict[str, Any]], schema: int) -> str:
    """The only text that a manifest of these files can have: any other byte in it is damage, and is noticed."""
    content = {"schema": schema, "step": step, "files": files}
    checksum = hashlib.blake2b(encode(content).encode(), digest_size=32).hexdigest()
    return encode(content | {"blake2b": checksum})


def _content_problem(name: str, path: Path, wanted: dict[str, int | str]) -> str | None:
    size = path.stat().st_size
    if size != wanted["bytes"]:
        return f"{name}: {size} bytes, {wanted['bytes']} were written"
    if describe(path) != wanted:
        return f"{name}: its content differs from what was written (checksum)"
    return None
