"""What differs between the parts of a sample while they are sampled together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

# Fields of `SamplerConfig` that a part may have of its own.
OWN = ("steps", "shift", "cfg_scale", "cfg_interval", "conditioning_noise")


@dataclass
class PartSampling:
    """Settings of one part; null is what `SamplerConfig` says for all of them.

    Attributes:
        steps: number of steps from the start to `stop_at`. Parts that begin together share the evaluations of the one
            with the most; one with fewer is taken at every few of them, late rather than early, so that it is never
            cleaner than its share of the way.
        shift, cfg_scale, cfg_interval, conditioning_noise: as in `SamplerConfig`.
        stop_at: level at which the part ends and stays, after the shift; 0 is data. With `steps`, they all lie above
            it; without, the steps of the others are taken as far as they do.
        tweedie: of a part that stops early: return its expected data, E[x0 | x] = x - t v, for one more evaluation at
            the end, and not the state with its noise.
        after: name of a part; this one waits as noise until that one has ended.
        absent: stays noise at level 1 for the whole run, which marginalizes it: its tokens are there and are attended
            to, as in training with `NAME_absent`.
        omit: has no tokens at all. The sequence is shorter; a trunk has seen that only if it was trained on it.
    """

    steps: int | None = None
    shift: float | None = None
    cfg_scale: float | None = None
    cfg_interval: list[float] | None = None
    conditioning_noise: float | None = None
    stop_at: float = 0.0
    tweedie: bool = True
    after: str = ""
    absent: bool = False
    omit: bool = False

    @property
    def sampled(self) -> bool:
        """Whether anything is made of it."""
        return not (self.absent or self.omit)

    def own(self) -> dict[str, object]:
        """The fields of `SamplerConfig` that it has of its own."""
        return {name: getattr(self, name) for name in OWN if getattr(self, name) is not None}

    def movement(self) -> list[str]:
        """The settings by which its levels differ from those of the others."""
        defaults = {"steps": None, "shift": None, "stop_at": 0.0, "after": ""}
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def problems(self) -> list[str]:
        found = []
        if not 0 <= self.stop_at < 1:
            found.append(f"stop_at: {self.stop_at} must lie in [0, 1)")
        elif not self.tweedie and self.stop_at == 0:
            found.append("tweedie: false is not read with stop_at 0, where no noise is left")
        if self.absent and self.omit:
            found.append("omit: has no tokens, and absent has them at level 1; choose one")
        elif not self.sampled:
            why, other = ("absent", "omit") if self.absent else ("omit", "absent")
            unread = [
                entry.name
                for entry in fields(self)
                if entry.name not in (why, other) and getattr(self, entry.name) != entry.default
            ]
            found += [f"{name}: is not read with {why}, which makes nothing of the part" for name in unread]
        return found


def waiting_problems(parts: Mapping[str, PartSampling]) -> list[str]:
    """Parts that wait for each other."""
    found = []
    for name in parts:
        seen, place = {name}, parts[name].after
        while place in parts and place not in seen:
            seen.add(place)
            place = parts[place].after
        if place == name:
            found.append(f"parts.{name}.after: {parts[name].after!r} waits, in turn, for {name}")
    return found
