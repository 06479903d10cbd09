"""Docstrings name parameters and attributes that exist: a rename in the code must reach them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "autoencoders", "modalities", "configs", "robotics", "tools")
SECTION = re.compile(r"^(?:Args|Attributes):\n((?: {4}.*\n|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}((?:\w+, )*\w+):(?: |$)", re.MULTILINE)
Documented = ast.FunctionDef | ast.ClassDef


def said(node: Documented) -> list[str]:
    """Names of the entries of the sections Args and Attributes."""
    text = (ast.get_docstring(node) or "") + "\n"
    return [name for body in SECTION.findall(text) for names in ENTRY.findall(body) for name in names.split(", ")]


def known(node: Documented, source: str) -> set[str]:
    """The parameters of a function; of a class every word of its code, since attributes are made anywhere in it."""
    if isinstance(node, ast.ClassDef):
        code = re.sub(r'"""(?:.|\n)*?"""', "", ast.get_source_segment(source, node) or "")
        return set(re.findall(r"\w+", code))
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {argument.arg for argument in [*plain, arguments.vararg, arguments.kwarg] if argument is not None}


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_name_parameters_and_attributes_that_exist(package):
    wrong, count = [], 0
    for path in sorted((ROOT / package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, Documented) and (names := said(node)):
                count += len(names)
                lacking = set(names) - known(node, source)
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {name}" for name in sorted(lacking)]
    assert not wrong
    assert count > 20
