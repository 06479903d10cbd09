"""What the configurations of all kinds of data sources share; each kind has a dataclass of its own beside its source.

A table of them, and the one that is a list of others: modalities/data/sources/build.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import ConfigError, nearest
from modalities.base import Source
from modalities.data.sources.cache import parse_size
from modalities.data.sources.captions import CAPTION_CHOICES, CAPTIONS, CaptionRule
from modalities.data.sources.selection import SPLITS, Selection


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ABC):
    """Where the records of one stream come from.

    Attributes:
        kind: a name in build.SOURCES.
        repeat: how often an epoch holds each record, so that a small part of a concat is seen more often.
        caption_choice: which of several captions is used: longest, middle (of median length) or first. null is the
            paper's: a random one in every epoch of training, the most detailed in evaluation, taken to be the longest.
            Where a field holds it, name that one in `caption_fields` instead. Of a concat, not of its parts.
    """

    kind: str = ""
    repeat: int = 1
    caption_choice: str | None = None

    @abstractmethod
    def build(self, modalities: tuple[str, ...], root: Path) -> Source:
        """The source, with each record once; see `build_source`, which is what others call."""

    def problems(self) -> list[str]:
        found = [f"repeat: {self.repeat} must be at least 1"] if self.repeat < 1 else []
        if self.caption_choice is not None:
            found += not_one_of("caption_choice", self.caption_choice, CAPTION_CHOICES)
        return found

    def paths(self) -> tuple[str, ...]:
        """Where the records lie, as the user wrote it; none for records that are drawn."""
        return ()

    def layout(self, modality: str) -> str:
        """What must lie at the path, for messages; "" where the source reads no media of its own."""
        return ""

    @property
    def name(self) -> str:
        """The last part of the path; "" without one."""
        return ""

    @property
    def holds_latents(self) -> bool:
        """Its records have stored latents in place of media."""
        return False

    @property
    def holds_episodes(self) -> bool:
        """Its records are windows of a robot's episodes, whose ends may be padding."""
        return False


@dataclass(frozen=True, kw_only=True)
class PathConfig(SourceConfig):
    """A source at a path.

    Attributes:
        path: see the kinds. Relative to the configuration file.
    """

    path: str = ""

    def problems(self) -> list[str]:
        found = [] if self.path else [f"path: empty, kind {self.kind!r} needs one"]
        return found + super().problems()

    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class MediaConfig(PathConfig):
    """A source of media files, with texts and classes beside them.

    Attributes:
        label_field: column or JSON field of the class; "" for none.
        captions: given (fields beside the media, see `caption_fields`), label (the class name is the caption), or none.
        caption_fields: columns, or fields of the JSON beside the media, that hold one text or a list of texts. The
            lines of a .txt or .caption beside the media count as the field "caption". Dots lead inwards: `caption.en`,
            `messages.0.content`; without the number, every item of a list is taken.
        caption: one caption for all records, in place of the above.
        caption_default: caption of records that have none; "" sets such records aside as unusable.
        split: train or test, a side of the hold-out; or all.
        holdout: share held out for test, by a hash of the record's key.
    """

    label_field: str = ""
    captions: str = "given"
    caption_fields: list[str] = field(default_factory=lambda: ["caption", "captions"])
    caption: str = ""
    caption_default: str = ""
    split: str = "all"
    holdout: float = 0.0

    def problems(self) -> list[str]:
        found = super().problems() + not_one_of("captions", self.captions, CAPTIONS)
        if self.captions == "given" and not self.caption and not self.caption_fields:
            found.append("caption_fields: empty; name a field, or set `captions: none` or a constant `caption`")
        if self.captions == "label" and not self.knows_labels():
            found.append("label_field: empty, `captions: label` needs it")
        found += not_one_of("split", self.split, SPLITS)
        if not 0 <= self.holdout < 1:
            found.append(f"holdout: {self.holdout} must lie in [0, 1)")
        elif (self.split == "all") != (self.holdout == 0):
            found.append(f"split: {self.split!r} with holdout {self.holdout:g}; set both, or neither")
        return found

    def knows_labels(self) -> bool:
        return bool(self.label_field)

    def caption_rule(self) -> CaptionRule:
        return CaptionRule(self.captions, tuple(self.caption_fields), self.caption, self.caption_default)

    def selection(self) -> Selection:
        return Selection({}, self.split, self.holdout)


@dataclass(frozen=True, kw_only=True)
class SelectableConfig(MediaConfig):
    """A source of media files that are selected by the fields beside them, too.

    Attributes:
        where: field -> value that a record must have, such as {style: noto}; compared as text.
        holdout_key: field whose equal values stay on one side of the hold-out; "" is the record's key.
    """

    where: dict[str, str] = field(default_factory=dict)
    holdout_key: str = ""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.holdout_key and self.split == "all":
            found.append(f"holdout_key: {self.holdout_key!r} without a split; set split and holdout too")
        return found

    def selection(self) -> Selection:
        return Selection(dict(self.where), self.split, self.holdout, self.holdout_key)


def not_one_of(name: str, value: str, allowed: Iterable[str]) -> list[str]:
    """A line for a setting that is none of the allowed words."""
    allowed = list(allowed)
    return (
        [] if value in allowed else [f"{name}: {value!r} is not one of {', '.join(allowed)}.{nearest(value, allowed)}"]
    )


def shuffle_problems(shuffle_blocks: int) -> list[str]:
    return [] if shuffle_blocks >= 1 else [f"shuffle_blocks: {shuffle_blocks} must be at least 1"]


def cache_problems(cache_limit: str) -> list[str]:
    try:
        if cache_limit:
            parse_size(cache_limit)
    except ConfigError as error:
        return [f"cache_limit: {line}" for line in error.problems]
    return []


def place_of(path: str, root: Path) -> str | Path:
    """A folder below `root`, or a URL as it is."""
    return path if "://" in path else root / Path(path).expanduser()
