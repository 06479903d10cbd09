"""Versions that SIMPLER's environment must have, and why."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Pin(NamedTuple):
    """least <= version < below, numbers of the version in order; a bound may be None."""

    package: str
    least: tuple[int, ...] | None
    below: tuple[int, ...] | None
    help: str

    @property
    def wanted(self) -> str:
        bounds = ((">=", self.least), ("<", self.below))
        return ",".join(f"{sign}{'.'.join(map(str, bound))}" for sign, bound in bounds if bound is not None)


PINS = (
    Pin("python", (3, 8), (3, 12), "SAPIEN 2.2.2 has wheels for Python 3.8 to 3.11: make the environment with one"),
    Pin(
        "sapien",
        (2, 2, 2),
        (2, 2, 3),
        "pip install sapien==2.2.2: 3.x has another interface",
    ),
    Pin("numpy", None, (2,), "pip install 'numpy<2': with 2 the inverse kinematics of SAPIEN 2 crash"),
    Pin("gymnasium", (0, 28, 1), (1,), "pip install 'gymnasium>=0.28.1,<1.0'"),
    Pin("setuptools", None, (70,), "pip install 'setuptools<70': SAPIEN 2 imports its pkg_resources"),
)


def violated(versions: dict[str, Any]) -> dict[str, str]:
    """What is wrong with an environment, by package, and what to do: nothing where every pin holds.

    Args:
        versions: as the simulator's `versions` tells them; None where a package is missing.
    """
    found: dict[str, str] = {}
    for pin in PINS:
        seen = versions.get(pin.package)
        if seen is None:
            found[pin.package] = f"is missing, wanted {pin.wanted}: {pin.help}"
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", seen)[:3])
        if (pin.least and numbers < pin.least) or (pin.below and numbers >= pin.below):
            found[pin.package] = f"{seen}, wanted {pin.wanted}: {pin.help}"
    if versions.get("mani_skill2_real2sim") is None:
        reason = versions.get("problem", "not installed")
        found["mani_skill2_real2sim"] = (
            f"cannot be imported ({reason}): clone it and set PYTHONPATH, or pip install -e it"
        )
    return found
