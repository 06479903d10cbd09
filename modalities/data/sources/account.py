"""What a source leaves out of its records, counted by reason, and what it takes through links."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_REASONS = 60  # distinguished; all others count as one
_OTHERS = "other file|"


@dataclass
class Account:
    """Counts by reason, with one example each. In a reason `|` stands for the s of a plural: "broken link|".

    Attributes:
        left_out: reason -> how many; what is no record, and what training will set aside for certain.
        uncaptioned: records beside which no caption lies: `caption_default` stands in, or training sets them aside.
        linked: "folder|" or "file|" -> how many were taken through a link.
        examples: reason -> the name of one of them.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    uncaptioned: int = 0
    linked: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave(self, reason: str, example: str = "", count: int = 1) -> None:
        """Note what is left out."""
        if count <= 0:
            return
        if reason not in self.left_out and len(self.left_out) >= _REASONS:
            reason = _OTHERS
        self.left_out[reason] += count
        if example:
            self.examples.setdefault(reason, example)

    def follow(self, what: str) -> None:
        """Note a link that was followed."""
        self.linked[what] += 1

    def add(self, other: Account) -> None:
        """Take over what another one has noted."""
        for reason, count in other.left_out.items():
            self.leave(reason, other.examples.get(reason, ""), count)
        self.uncaptioned += other.uncaptioned
        self.linked.update(other.linked)

    def line(self, limit: int = 12) -> str:
        """Such as "left out: 120 .avif (no decoder), 3 broken links; through links: 2 folders"; "" for nothing."""
        ranked = self.left_out.most_common()
        shown = [_counted(count, reason) for reason, count in ranked[:limit]]
        if rest := ranked[limit:]:
            shown.append(_counted(sum(count for _, count in rest), f"of {len(rest)} other kinds"))
        parts = [f"left out: {', '.join(shown)}"] if shown else []
        if self.uncaptioned:
            parts.append(f"without a caption: {self.uncaptioned:,}")
        if self.linked:
            followed = (_counted(count, what) for what, count in sorted(self.linked.items(), reverse=True))
            parts.append(f"through links: {', '.join(followed)}")
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """The same, one reason a line, with an example each."""
        found = []
        for reason, count in self.left_out.most_common():
            example = f", such as {self.examples[reason]}" if reason in self.examples else ""
            found.append(f"left out: {_counted(count, reason)}{example}")
        if self.uncaptioned:
            found.append(f"without a caption: {_counted(self.uncaptioned, 'record|')}")
        return found + [f"through links: {_counted(count, what)}" for what, count in sorted(self.linked.items())]

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "left_out": dict(self.left_out),
            "uncaptioned": self.uncaptioned,
            "linked": dict(self.linked),
            "examples": dict(self.examples),
        }

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Account:
        """The inverse of `to_plain`. Raises KeyError, TypeError or ValueError for anything else."""
        left_out, linked = Counter(plain["left_out"]), Counter(plain["linked"])
        return Account(left_out, plain["uncaptioned"], linked, dict(plain["examples"]))


def _counted(count: int, reason: str) -> str:
    return f"{count:,} {reason.replace('|', '' if count == 1 else 's')}"
