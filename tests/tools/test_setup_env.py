"""Setup keeps a torch that fits and pins nothing else; the full set takes a build of torch that all of it needs."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools.setup_env import constraints, fits, link_ffmpeg, unfit_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("2.15.0+cu132", True),
        ("2.10.1", False),
        ("2.16.0", False),
        (None, False),
    ],
)
def test_an_installed_torch_is_kept_when_it_fits(version, kept):
    assert fits(version) == kept
    line = f"torch=={version}" if kept else "torch==2.13.0"
    assert line in constraints(version).splitlines()
    assert "torchvision==0.28.0" in constraints(version)


def test_the_bounds_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = next(one for one in map(Requirement, project["dependencies"]) if one.name == "torch").specifier
    for minor in range(9, 18):
        assert fits(f"2.{minor}.0") == torch.contains(f"2.{minor}.0"), minor
    python = SpecifierSet(project["requires-python"])
    for minor in range(9, 17):
        assert (not unfit_python((3, minor), full=False)) == python.contains(f"3.{minor}"), minor


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (False, ""),
        (
            True,
            "the full set of selfflow needs Python 3.11 to 3.13; this is 3.14. Try: make setup-full PYTHON=python3.12",
        ),
    ],
)
def test_python_3_14_has_the_light_set_alone(full, expected):
    assert unfit_python((3, 14), full) == expected


@pytest.fixture(scope="module")
def full() -> dict[str, Requirement]:
    lines = (ROOT / "constraints-full.txt").read_text().splitlines()
    return {one.name: one for one in (Requirement(line) for line in lines if line and not line.startswith("#"))}


def test_the_full_set_refuses_a_cpu_build_of_torch(full):
    specifier = full["torch"].specifier
    assert {build: specifier.contains(build) for build in ("2.13.0", "2.13.0+cu130", "2.13.0+cpu", "2.12.1")} == {
        "2.13.0": True,
        "2.13.0+cu130": True,
        "2.13.0+cpu": False,
        "2.12.1": False,
    }


def test_every_package_of_the_full_extra_is_bounded_from_both_sides(full):
    """Otherwise pip tries one version of everything after the other."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in extras["full"]:
        name = Requirement(line).name
        operators = {one.operator for one in full[name].specifier}
        assert "==" in operators or {">=", "<"} <= operators, name


def test_ffmpeg_inside_pyav_is_linked_under_the_names_that_torchcodec_looks_for(tmp_path):
    (tmp_path / "av.libs").mkdir()
    for name in ("libavutil-5809ad29.so.60.26.102", "libswscale-88e9f973.so.9.5.102", "libx264-d6533a8d.so.165"):
        (tmp_path / "av.libs" / name).write_text(name)
    for _ in range(2):  # setup may run again
        link_ffmpeg(tmp_path, tmp_path / "ffmpeg")
    assert {path.name: path.read_text() for path in (tmp_path / "ffmpeg").iterdir()} == {
        "libavutil-5809ad29.so.60.26.102": "libavutil-5809ad29.so.60.26.102",
        "libavutil.so.60": "libavutil-5809ad29.so.60.26.102",
        "libswscale-88e9f973.so.9.5.102": "libswscale-88e9f973.so.9.5.102",
        "libswscale.so.9": "libswscale-88e9f973.so.9.5.102",
        "libx264-d6533a8d.so.165": "libx264-d6533a8d.so.165",
    }
