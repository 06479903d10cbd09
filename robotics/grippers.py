"""From how far a gripper shall be open to what SIMPLER's Google robot takes: a change, repeated until it is done.

The simulated gripper takes a relative command (+1 closes, -1 opens, 0 keeps) and needs many steps for the whole way.
So evaluations of policies that predict openness repeat a change that is large enough ("sticky"). Published numbers use
three rules that differ in what a change is. All are pure: the memory goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError, choose

THRESHOLD = 0.5  # a change beyond it is repeated; smaller ones are passed on once
REPEATS = 15  # steps, five seconds at 3 Hz: Octo's and open-pi-zero's. CogACT's scripts set 10
DEFAULT = "cogact"


@dataclass(frozen=True)
class Sticky:
    """Memory between steps. `previous`: openness that changes are measured from; `command`: repeated `left` times."""

    previous: float | None = None
    command: float = 0.0
    left: int = 0


def octo(openness: float, memory: Sticky) -> tuple[float, float | None]:
    """Change since the last step. A gripper that closes over several steps, none of them large, never closes."""
    change = 0.0 if memory.previous is None else memory.previous - openness
    return change, openness


def cogact(openness: float, memory: Sticky) -> tuple[float, float | None]:
    """Change since the last repeated one (or the first step), so that slow closing adds up."""
    if memory.previous is None:
        return 0.0, openness
    change = memory.previous - openness
    triggers = abs(change) > THRESHOLD and memory.left == 0
    return change, openness if triggers else memory.previous


def pi(openness: float, memory: Sticky) -> tuple[float, float | None]:
    """No memory: open means open now. Also acts at the first step, where the others wait for a change."""
    return 1 - 2 * openness, None


RULES = {"octo": octo, "cogact": cogact, "pi": pi}


def sticky(rule: str, openness: float, memory: Sticky, repeats: int = REPEATS) -> tuple[float, Sticky]:
    """The command of this step, and the memory for the next.

    Rules as in the inference scripts of Octo in SimplerEnv, of CogACT, and of open-pi-zero.

    Args:
        rule: a key of `RULES`.
        openness: 1 open, 0 closed, as the policy predicts it.
        repeats: steps for which a large change is sent, this one included.

    Returns:
        The command in [-1, 1]: +1 closes, -1 opens.

    Raises:
        ConfigError: no such rule, or less than one step.
    """
    if repeats < 1:
        raise ConfigError(f"repeats of the sticky gripper: {repeats} must be at least 1")
    change, previous = choose("rule of the sticky gripper", rule, RULES)(openness, memory)
    command, left = memory.command, memory.left
    if left == 0 and abs(change) > THRESHOLD:
        command, left = change, repeats
    if left == 0:
        return change, Sticky(previous)
    return command, Sticky(previous, command if left > 1 else 0.0, left - 1)
