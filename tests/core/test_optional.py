"""What a user sees of a package that is not there."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.optional import EXTRAS, PACKAGES, missing, need, packaged

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "autoencoders", "modalities", "configs", "robotics", "tools")


def test_a_package_that_is_there_is_imported():
    assert need("json.decoder", "this", "All else works").JSONDecoder


@pytest.mark.parametrize("module", EXTRAS)
def test_an_absent_package_is_one_line_with_its_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        need(module, "kind: 'x'", "All other kinds work")
    package = PACKAGES.get(module, module)
    way = "make setup-full (extra full)" if EXTRAS[module] == "full" else f"pip install -e '.[{EXTRAS[module]}]'"
    line = f"kind: 'x' needs the package {package}, which is not installed: {way}. All other kinds work without it"
    assert str(caught.value) == line == missing(module, "kind: 'x'", "All other kinds work")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import not_here_either", "No module named 'not_here_either'"),
        (r"raise OSError('libx.so: cannot open.\nSearched:\n/a')", "libx.so: cannot open"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line_with_the_reason(text, reason, tmp_path, monkeypatch):
    (tmp_path / "soxr.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "soxr", raising=False)
    with pytest.raises(ConfigError) as caught:
        need("soxr", "this file", "Audio clips of other rates work")
    assert str(caught.value) == (
        f"this file needs the package soxr, which cannot be imported here ({reason}): pip install -e '.[media]'. "
        "Audio clips of other rates work without it"
    )


def test_each_package_stands_in_the_extra_that_installs_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        assert any(line.startswith(f"{PACKAGES.get(module, module)}>=") for line in extras[extra]), (module, extra)


def imports_when_loaded(tree: ast.Module) -> set[str]:
    """Names that a file imports outside of any function."""
    found, stack = set(), list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            stack.extend(ast.iter_child_nodes(node))
    return {name.partition(".")[0] for name in found}


def test_no_file_imports_an_optional_package_when_it_is_loaded():
    known = set(EXTRAS) | {"timm", "torch_fidelity", "accelerate", "torchmetrics"}
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    wrong = {
        str(path.relative_to(ROOT)): names & known
        for path in files
        if (names := imports_when_loaded(ast.parse(path.read_text()))) & known
    }
    assert wrong == {}


def test_a_path_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    inside = tmp_path / "weights_of_someone" / "models"
    inside.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "a.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged("package:weights_of_someone/models/a.pth", "path", "All else works") == str(inside / "a.pth")
    assert packaged("/some/where", "path", "All else works") == "/some/where"
    for path, said in {
        "package:weights_of_someone/b.pth": "there is no 'b.pth' in the package",
        "package:nobody_has_this/b.pth": "no package 'nobody_has_this' is installed. All else works without it",
        "package:../b.pth": "with the name that the package is imported by",
        "package:json/decoder.py/..": "there is no 'decoder.py/..' in the package",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(said)):
            packaged(path, "path", "All else works")
