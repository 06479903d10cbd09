"""The documentation site: the page of the configuration, its navigation, and commands of the tutorials."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from configs.schema import Config
from core.kinds import kinds
from tests.modalities.making import gradient, image_bytes
from tools.cli import main
from tools.site.reference import configuration_page, meanings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@dataclass
class Red:
    """
    Attributes:
        kind: red.
        depth: how deep | in m.
    """

    kind: str = "red"
    depth: int = 3


@dataclass
class Blue(Red):
    """Blue ones.

    Attributes:
        low, high: bounds, in a
            second line.
    """

    kind: str = "blue"
    low: float = 0.5
    high: float | None = None


@dataclass
class Whole:
    """Everything.

    Attributes:
        colour: of it.
    """

    colour: Red = field(default_factory=Red, metadata=kinds({"red": Red, "blue": Blue}))
    parts: dict[str, Red] = field(default_factory=dict)


def test_a_section_shows_its_settings_defaults_and_meanings():
    assert meanings(Blue) == {
        "kind": "red.",
        "depth": "how deep | in m.",
        "low": "bounds, in a second line.",
        "high": "bounds, in a second line.",
    }
    page = configuration_page(Whole)
    assert "| `depth` | `3` | how deep \\| in m. |" in page
    assert "| `high` | null | bounds, in a second line. |" in page
    assert re.findall("^## (.*)", page, re.MULTILINE) == ["`the file`", "`colour (kind: red)`", "`colour (kind: blue)`"]


def test_every_setting_of_the_schema_is_there_and_almost_all_are_explained():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", configuration_page(Config), re.MULTILINE)
    assert len(rows) > 250
    silent = sorted({name for name, meaning in rows if not meaning.strip()})
    assert len(silent) < 0.2 * len(rows), silent


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE)) - {"reference/configuration.md"}
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "simpler_cpu" not in path.parts}
    assert named == pages
    assert yaml.safe_load(text)["strict"] is True


def commands(page: str) -> list[str]:
    return re.findall(r"^    selfflow (.*?)(?:  +#.*)?$", (DOCS / page).read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_first_tutorial_works_as_it_stands(tmp_path, monkeypatch):
    """Its commands on 24 small images, but for the size of the model; the page in the browser has tests of its own."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    for number in range(24):
        (photos / f"{number}.png").write_bytes(image_bytes(gradient(40 + number, 40)))
        (photos / f"{number}.txt").write_text(f"gradient number {number}")
    small = ["training.steps=4", "trunk.mmdit.size=tiny", "streams.image.batch=4", "training.device=cpu"]
    for typed in commands("tutorials/own_data.md"):
        given = [word.replace("/data/photos", str(photos)) for word in shlex.split(typed)]
        if given[0] in ("app", "evaluate"):
            continue
        assert main([*given, *(small if given[0] == "train" else [])]) == 0, typed
    assert len(list((tmp_path / "runs/photos/generated/image").glob("*.png"))) == 5  # with the grid
    assert (tmp_path / "runs/photos/report.html").is_file()
