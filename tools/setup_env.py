"""Create .venv with selfflow, its development tools and the `selfflow` command. Standard library only.

A torch that is already there is kept: one in .venv, or one in the Python that runs this script, from 2.11 to 2.15 (the
range of pyproject.toml). Otherwise pip takes the version of constraints.txt, which is a CPU build wherever pip's
configuration offers one.

With --full it creates .venv-full instead, with every optional package at the versions of constraints-full.txt. That
environment stands alone: torchvision and torchaudio need the torch they were built against. mosaicml-streaming wants
numpy < 2.2, which has no wheels for Python 3.14.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST, NEWEST_FULL = (3, 11), (3, 14), (3, 13)
EXTRAS = "media,data,models,lora,ode,plots,report,log,robots,browser,dev"
TORCH = ((2, 11), (2, 15))
VERSION_OF_TORCH = "import importlib.metadata as m; print(m.version('torch'))"


def torch_version(python: Path) -> str | None:
    """The installed torch of an interpreter, such as '2.13.0+cpu', or None."""
    found = subprocess.run([python, "-c", VERSION_OF_TORCH], capture_output=True, text=True)
    return found.stdout.strip() or None


def fits(version: str | None) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return bool(numbers) and TORCH[0] <= tuple(map(int, numbers.groups())) <= TORCH[1]


def unfit_python(seen: tuple[int, int], full: bool) -> str:
    """Why a Python cannot be used; "" where it can."""
    newest = NEWEST_FULL if full else NEWEST
    if OLDEST <= seen <= newest:
        return ""
    what, command = ("the full set of selfflow", "make setup-full") if full else ("selfflow", "make setup")
    bounds = [".".join(map(str, version)) for version in (OLDEST, newest, seen)]
    return f"{what} needs Python {bounds[0]} to {bounds[1]}; this is {bounds[2]}. Try: {command} PYTHON=python3.12"


def constraints(version: str | None) -> str:
    """constraints.txt, or the installed torch pinned to itself so that pip leaves it alone."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if not fits(version):
        return "\n".join(lines)
    return "\n".join(f"torch=={version}" if line.startswith("torch==") else line for line in lines)


def link_ffmpeg(packages: Path, out: Path) -> None:
    """Links to the FFmpeg libraries inside PyAV, under the names by which torchcodec looks for FFmpeg.

    Wheels rename the libraries they bring: libavutil.so.60 is libavutil-5809ad29.so.60.26.102 there. Their own
    dependencies keep such names and are looked for in the same folder, so all of them are linked. For systems that have
    no FFmpeg; `make test-full` lets the loader look into `out`.
    """
    out.mkdir(exist_ok=True)
    for file in packages.glob("av.libs/*.so*"):
        names = [file.name]
        if parts := re.fullmatch(r"(lib(?:av|sw)[a-z]+)-\w+(\.so\.\d+)[\d.]*", file.name):
            names.append("".join(parts.groups()))
        for name in names:
            (out / name).unlink(missing_ok=True)
            (out / name).symlink_to(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="create .venv-full with every optional package")
    full = parser.parse_args().full
    if problem := unfit_python(sys.version_info[:2], full):
        sys.exit(problem)
    folder = ROOT / (".venv-full" if full else ".venv")
    windows = sys.platform == "win32"
    bin_ = folder / ("Scripts" if windows else "bin")
    python = bin_ / ("python.exe" if windows else "python")
    outer = None if full else torch_version(Path(sys.executable))
    if not python.exists():
        print(f"creating {folder}", flush=True)
        venv.create(folder, with_pip=True, system_site_packages=fits(outer))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        if full:
            file.write((ROOT / "constraints-full.txt").read_text())
        else:
            have = torch_version(python)
            print(f"torch: {f'keeping the installed {have}' if fits(have) else 'to be installed'}", flush=True)
            file.write(constraints(have) + "\n")
        file.flush()
        wanted = f"{ROOT}[{EXTRAS},full]" if full else f"{ROOT}[{EXTRAS}]"
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", file.name, "-e", wanted], check=True)
    if full and sys.platform == "linux":
        link_ffmpeg(Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})), folder / "ffmpeg")
    print(f"ready: torch {torch_version(python)}, {bin_ / 'selfflow'} --help", flush=True)


if __name__ == "__main__":
    main()
