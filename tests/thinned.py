"""Long tables of cases: CI runs every n-th of them, `-m slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], every: int) -> list[Any]:
    """The cases of `pytest.mark.parametrize`, tuples for several names; all but every n-th are marked slow."""
    return [case if place % every == 0 else slow(case) for place, case in enumerate(cases)]


def slow(case: Any) -> Any:
    """One case that CI leaves out."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
