"""Which process is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from core.training.distributed import World
from core.training.stragglers import Stragglers, compared


@dataclass(frozen=True)
class Two:
    """A world in which the other process waits three times as long."""

    size: int = 2

    def gather(self, own: dict[str, float]) -> list[dict[str, float]]:
        return [own, {"seconds": own["seconds"], "waited": 3 * own["waited"]}]


TWO = cast(World, cast(Any, Two()))


def test_means_since_the_last_comparison_are_compared():
    stragglers = Stragglers(2, TWO)
    assert stragglers.add(1, seconds=2.0, waited=0.125) is None
    assert stragglers.add(2, seconds=3.0, waited=0.375) == {
        "seconds": {"min": 2.5, "median": 2.5, "max": 2.5, "rank": 0},
        "waited": {"min": 0.25, "median": 0.5, "max": 0.75, "rank": 1},
    }
    assert stragglers.add(3, seconds=9.0, waited=0.0) is None
    found = stragglers.add(4, seconds=1.0, waited=0.0)
    assert found is not None
    assert found["seconds"]["max"] == 5.0
    assert Stragglers(0, TWO).add(2, seconds=1.0) is None
    assert Stragglers(2).add(2, seconds=1.0) is None  # alone


def test_the_slowest_has_a_name():
    ranks = [{"waited": waited} for waited in (0.0, 0.1, 0.7, 0.2)]
    assert compared(ranks)["waited"] == {"min": 0.0, "median": 0.15, "max": 0.7, "rank": 2}
