"""Measures tried one by one: a failure is a note beside the values of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.errors import described


@dataclass
class Measured:
    """
    Attributes:
        values: name -> finite number.
        warnings: what a reader of the numbers has to know.
        failed: measures that should have been made and were not; `warnings` say why.
    """

    values: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def attempt(self, name: str, measure: Callable[[], Mapping[str, float]]) -> None:
        """Add what `measure` gives, or note under `name` what it raised, whatever that is; only Ctrl-C passes."""
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001, hours of other measures must not be lost with it
            self.fail(name, described(error))
            return
        self.values |= {key: float(value) for key, value in found.items() if math.isfinite(value)}
        if strange := [f"{key} is {value}" for key, value in found.items() if not math.isfinite(value)]:
            self.fail(name, f"not finite: {', '.join(strange)}")

    def fail(self, name: str, why: str) -> None:
        self.failed.append(name)
        self.warnings.append(f"{name} is left out: {why}")
