"""Create .venv with selfflow, its development tools and the `selfflow` command. Standard library only.

A torch that is already there is kept: one in .venv, or one in the Python that runs this script, from 2.11 to 2.13 (the
range of pyproject.toml). Otherwise pip takes the version of constraints.txt, which is a CPU build wherever pip's
configuration offers one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
PYTHON = BIN / ("python.exe" if sys.platform == "win32" else "python")
OLDEST, NEWEST = (3, 11), (3, 13)
EXTRAS = "media,data,models,ode,plots,log,dev"
TORCH = ((2, 11), (2, 13))
VERSION_OF_TORCH = "import importlib.metadata as m; print(m.version('torch'))"


def torch_version(python: Path) -> str | None:
    """The installed torch of an interpreter, such as '2.13.0+cpu', or None."""
    found = subprocess.run([python, "-c", VERSION_OF_TORCH], capture_output=True, text=True)
    return found.stdout.strip() or None


def fits(version: str | None) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return bool(numbers) and TORCH[0] <= tuple(map(int, numbers.groups())) <= TORCH[1]


def constraints(version: str | None) -> str:
    """constraints.txt, or the installed torch pinned to itself so that pip leaves it alone."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if not fits(version):
        return "\n".join(lines)
    return "\n".join(f"torch=={version}" if line.startswith("torch==") else line for line in lines)


def main() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        seen = sysconfig.get_python_version()
        sys.exit(f"selfflow needs Python 3.11 to 3.13; this is {seen}. Try: make setup PYTHON=python3.12")
    outer = torch_version(Path(sys.executable))
    if not PYTHON.exists():
        print(f"creating {VENV}", flush=True)
        venv.create(VENV, with_pip=True, system_site_packages=fits(outer))
    have = torch_version(PYTHON)
    print(f"torch: {f'keeping the installed {have}' if fits(have) else 'to be installed'}", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints(have) + "\n")
        file.flush()
        command = [PYTHON, "-m", "pip", "install", "-q", "-c", file.name, "-e", f"{ROOT}[{EXTRAS}]"]
        subprocess.run(command, check=True)
    print(f"ready: torch {torch_version(PYTHON)}, {BIN / 'selfflow'} --help", flush=True)


if __name__ == "__main__":
    main()
