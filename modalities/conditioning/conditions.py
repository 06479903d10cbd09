"""From a record's captions or label to a Context, and the decision to drop it.

The decision is drawn once per sample and stored in the Context, so that student and teacher always agree. Features of a
frozen text encoder are stored beside the captions, or computed later, on the training device: a `RawCondition` holds
what is known until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, choose, nearest
from core.types import Context
from modalities.base import Record
from modalities.conditioning import TextConfig, TextEncoder, TextEncoderConfig, collate_text
from modalities.conditioning.encoder import feature_dtype
from modalities.data.sources.captions import choose_caption


@dataclass
class ConditionConfig:
    """What samples are conditioned on. By itself it is that of kind none.

    `ConditionConfig("label", cfg_dropout=0.2)` makes the dataclass of that kind, a row of CONDITIONS, and raises
    ConfigError for a kind that does not exist.

    Attributes:
        kind: text (captions), label (class names of the data), or none: every sample has the null condition, and the
            data need neither captions nor classes.
    """

    kind: str = "text"

    def __new__(cls, kind: str = "text", **_settings: Any) -> Self:
        row: Any = choose("kind", kind, CONDITIONS) if cls is ConditionConfig else cls
        return super().__new__(row)

    def problems(self) -> list[str]:
        return []

    def dropped(self) -> float:
        """Share of samples with the null condition in training."""
        return 1.0

    def text_encoder(self) -> TextEncoderConfig | None:
        """The frozen text encoder; None for the byte-level one, and where there is no text."""
        return None


@dataclass
class LabelCondition(ConditionConfig):
    """
    Attributes:
        cfg_dropout: share of samples whose condition is dropped in training, for guidance; in [0, 1).
    """

    kind: str = "label"
    cfg_dropout: float = 0.1

    def problems(self) -> list[str]:
        return [] if 0 <= self.cfg_dropout < 1 else [f"cfg_dropout: {self.cfg_dropout} must lie in [0, 1)"]

    def dropped(self) -> float:
        return self.cfg_dropout


@dataclass
class TextCondition(LabelCondition):
    """
    Attributes:
        encoder_depth: self-attention blocks of the byte-level encoder, which is trained with the trunk.
        text: how the byte-level encoder turns text into rows of its table.
        encoder: a frozen text encoder in place of the byte-level one, which needs no download; null for none.
    """

    kind: str = "text"
    encoder_depth: int = 1
    text: TextConfig = field(default_factory=TextConfig)
    encoder: TextEncoderConfig | None = None

    def problems(self) -> list[str]:
        own = [f"encoder_depth: {self.encoder_depth} must not be negative"] if self.encoder_depth < 0 else []
        return super().problems() + own

    def text_encoder(self) -> TextEncoderConfig | None:
        return self.encoder


CONDITIONS: dict[str, type[ConditionConfig]] = {
    "text": TextCondition,
    "label": LabelCondition,
    "none": ConditionConfig,
}


@dataclass(frozen=True)
class Prompt:
    """What one sample is conditioned on.

    Attributes:
        text: a caption, or the name of a class.
        features: (S, Dc) that are stored for the caption, or None.
    """

    text: str
    features: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RawCondition:
    """What conditions B samples, before a frozen text encoder has read what is still text.

    Attributes:
        known: what is there already: labels, rows of the byte-level encoder, or stored features.
        texts: by sample, what the text encoder adds; None for a sample that needs nothing. () without such an encoder.
    """

    known: Context
    texts: tuple[str | None, ...] = ()

    def complete(self, encoder: TextEncoder | None) -> Context:
        """As the trunk reads it, on the encoder's device."""
        return self.known if encoder is None else encoder.complete(self.known, self.texts)


class Conditions:
    """
    Args:
        labels: every class name of the run, in the order of the trunk's label table; empty with text.
    """

    def __init__(self, config: ConditionConfig, labels: list[str]):
        self.config, self.labels = config, labels
        self._index = {label: i for i, label in enumerate(labels)}

    def draw(self, record: Record, generator: torch.Generator, choice: str | None = None) -> tuple[Prompt, bool]:
        """The condition of a sample (one of its captions at random, or its label) and whether it is dropped.

        Args:
            choice: a name of `CAPTION_CHOICES` in place of a random caption.

        Raises DataError for a record without a caption or with an unknown label, and for stored features that do not
        fit.
        """
        place, level = torch.rand(2, generator=generator).tolist()
        dropped = record.unconditional or level < self.config.dropped()
        if choice is not None:
            return self.chosen(record, choice), dropped
        return self._prompt(record, lambda captions: int(place * len(captions))), dropped

    def chosen(self, record: Record, choice: str | None = None) -> Prompt:
        """The condition of a record in evaluation: its label, or the longest caption, unless another is chosen.

        Raises as `draw`.
        """
        return self._prompt(record, lambda captions: choose_caption(captions, choice or "longest"))

    def _prompt(self, record: Record, place_of: Callable[[tuple[str, ...]], int]) -> Prompt:
        """The label, or the caption at the place that is chosen among all; an empty one without conditions."""
        if self.config.kind == "none" or record.unconditional:
            return Prompt("")
        if self.config.kind == "label":
            if record.label not in self._index:
                raise DataError(
                    f"{record.origin}: label {record.label!r} is not among the {len(self.labels)} classes of the run"
                )
            return Prompt(record.label)
        if not record.captions:
            raise DataError(f"{record.origin}: has no caption (condition.kind: none trains without)")
        place = place_of(record.captions)
        text, encoder = record.captions[place], self.config.text_encoder()
        if encoder is None or not record.text:
            return Prompt(text)
        if len(record.text) != len(record.captions):
            raise DataError(
                f"{record.origin}: {len(record.captions)} captions, but stored features of {len(record.text)}"
            )
        features = record.text[place]
        if features.ndim != 2 or features.shape[1] != encoder.channels():
            raise DataError(
                f"{record.origin}: stored text features of shape {tuple(features.shape)}, but condition.encoder.width "
                f"is {encoder.channels()}"
            )
        if not torch.isfinite(features).all():
            raise DataError(f"{record.origin}: its stored text features hold NaN or infinite values")
        return Prompt(text, features)

    def context(self, prompts: Sequence[str | Prompt], dropped: Tensor) -> Context:
        """Texts or class names -> Context. With a frozen text encoder it holds what is stored; see `texts`.

        With kind none all samples are dropped, whatever is asked for; trunks that know classes alone look at the label.
        Raises ConfigError for an unknown class name.
        """
        if self.config.kind == "none":
            return Context(torch.ones_like(dropped), label=torch.zeros(len(prompts), dtype=torch.int64))
        if self.config.text_encoder() is not None:
            return self._stored(prompts, dropped)
        names = [_text(prompt) for prompt in prompts]
        if isinstance(self.config, TextCondition):
            tokens, valid = collate_text(names, self.config.text)
            return Context(dropped, tokens=tokens, valid=valid)
        for name in names:
            if name not in self._index:
                raise ConfigError(f"class {name!r} is not one of the run's classes.{nearest(name, self.labels)}")
        return Context(dropped, label=torch.tensor([self._index[name] for name in names]))

    def texts(self, prompts: Sequence[str | Prompt], dropped: Tensor) -> tuple[str | None, ...]:
        """By sample, what a frozen text encoder must add to `context`; None where nothing, () without an encoder.

        A dropped sample needs nothing: the trunk puts its learned null token there.
        """
        if self.config.text_encoder() is None:
            return ()
        return tuple(
            None if out or _features(prompt) is not None else _text(prompt)
            for prompt, out in zip(prompts, dropped.tolist(), strict=True)
        )

    def raw(self, prompts: Sequence[str | Prompt], dropped: Tensor) -> RawCondition:
        """Texts or class names, of which a frozen text encoder may still have to read some; errors of `context`."""
        return RawCondition(self.context(prompts, dropped), self.texts(prompts, dropped))

    def blank(self, context: Context) -> Context:
        """A context of the size that a completed one has, without content: for those who look at shapes alone."""
        encoder = self.config.text_encoder()
        if encoder is None:
            return context
        batch = context.dropped.shape[0]
        tokens = torch.zeros((), dtype=feature_dtype(encoder)).expand(batch, encoder.length(), encoder.channels())
        return Context(context.dropped, tokens=tokens, valid=torch.ones(tokens.shape[:2], dtype=torch.bool))

    def _stored(self, prompts: Sequence[str | Prompt], dropped: Tensor) -> Context:
        """The stored features of the samples that are not dropped, padded to the longest of them."""
        features = [_features(prompt) for prompt in prompts]
        rows = {i: found for i, found in enumerate(features) if found is not None and not dropped[i]}
        if not rows:
            return Context(dropped)
        encoder = self.config.text_encoder()
        assert encoder is not None  # stored features are those of a frozen encoder
        longest = min(max(len(row) for row in rows.values()), encoder.length())
        tokens = torch.zeros(len(features), longest, encoder.channels(), dtype=feature_dtype(encoder))
        valid = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        for i, row in rows.items():
            length = min(len(row), longest)
            tokens[i, :length], valid[i, :length] = row[:length].to(tokens.dtype), True
        return Context(dropped, tokens=tokens, valid=valid)


def _text(prompt: str | Prompt) -> str:
    return prompt.text if isinstance(prompt, Prompt) else prompt


def _features(prompt: str | Prompt) -> Tensor | None:
    return prompt.features if isinstance(prompt, Prompt) else None
