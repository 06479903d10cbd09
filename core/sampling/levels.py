"""The levels of a run: that of every part before the first step, and after each.

A row is one level for every part. Where the levels of a row agree, a sample is integrated at one level, as most are.
A step goes from one row to the next, and the factor of a part's velocity is the difference of its own two levels: on a
way u -> (t_1(u), ..., t_P(u)) through the levels of all parts, dx_p / du = v_p dt_p / du.
"""

from __future__ import annotations

from dataclasses import dataclass

Levels = tuple[float, ...]  # of every part


@dataclass(frozen=True)
class LevelSchedule:
    """
    Attributes:
        rows: the levels before the first step and after each; no part ever rises.
        lands: whether a part goes all the way, so that its last step is the one that its solver has for the last.
    """

    rows: tuple[Levels, ...]
    lands: tuple[bool, ...]

    @property
    def steps(self) -> int:
        return len(self.rows) - 1

    def moving(self, step: int) -> tuple[bool, ...]:
        """Which parts change their level in a step, counted from 0."""
        return tuple(t != after for t, after in zip(self.rows[step], self.rows[step + 1], strict=True))

    def landing(self, step: int) -> tuple[bool, ...]:
        """Which parts take their last step, and go all the way by it."""
        ends = zip(self.moving(step), self.lands, self.rows[step + 1], self.rows[-1], strict=True)
        return tuple(moves and lands and after == end for moves, lands, after, end in ends)

    def ends(self) -> LevelSchedule:
        """One step from the first row to the last."""
        return LevelSchedule((self.rows[0], self.rows[-1]), self.lands)


def shared_schedule(timesteps: list[float], parts: int = 1) -> LevelSchedule:
    """All parts at the same levels."""
    return LevelSchedule(tuple((t,) * parts for t in timesteps), (True,) * parts)
