"""Everything that a configuration describes, built by the same code for all commands. Each thing is built when it is
first asked for, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from autoencoders.base import LatentNormalization
from configs.assembly import normalization as statistics
from configs.assembly.adapters import Adapters, build_adapters, load_autoencoders
from configs.assembly.conditions import build_text_encoder, class_names
from configs.assembly.encoders import Encoders, build_encoders, target_channels
from configs.assembly.episodes import check_windows
from configs.assembly.latents import check_latents, latent_digests, text_digest
from configs.assembly.sources import open_sources
from configs.assembly.streams import build_parts, build_streams
from configs.assembly.trunk import build_trunk
from configs.buckets import by_size, step_shares
from configs.methods import projector_specs
from configs.schema import Config
from core.alignment.terms import build_alignment
from core.objective import Objective
from core.training.config import to_plain
from core.training.distributed import ALONE, World
from core.training.mixing import MixPiece, StreamMix
from core.trunk.projectors import ProjectorSpec
from modalities.base import Source
from modalities.conditioning import TextEncoder
from modalities.conditioning.conditions import Conditions
from modalities.data.loader import StepDataset
from modalities.data.preprocess import DevicePreprocess
from modalities.generation import Generator, Trunk
from modalities.streams import Parts, Stream


class Assembly:
    """
    Args:
        config: `settings` as it is; `config` has a stream for each size of those that have several.
        root: what relative paths of the configuration start from.
        stored: what a checkpoint of the run holds besides its tensors; None for a new run.
        device: of networks and frozen encoders.
        world: processes that share the steps of a training.
        given: parts of the assembly that are there already, by their name, such as sources or normalization.
    """

    def __init__(
        self,
        config: Config,
        root: Path,
        stored: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        world: World = ALONE,
        **given: Any,
    ):
        self.settings, self.config = config, by_size(config)
        self.root, self.stored, self.device = root, stored, torch.device(device)
        self.world = world
        unknown = [name for name in given if not isinstance(getattr(type(self), name, None), cached_property)]
        if unknown:
            raise TypeError(f"Assembly has no {', '.join(unknown)}")
        self.__dict__.update(given)

    # What the data are.

    @cached_property
    def adapters(self) -> Adapters:
        """stream -> part -> adapter, on the device; weights are read when they are first needed."""
        found = build_adapters(self.config, self.root)
        for parts in found.values():
            for adapter in parts.values():
                adapter.to(self.device)
        if self.stored is not None:
            for stream, parts in found.items():
                for name, digest in self.stored.get("autoencoders", {}).get(stream, {}).items():
                    parts[name].autoencoder.expect(digest)
        return found

    @cached_property
    def parts(self) -> dict[str, Parts]:
        """stream -> its parts with their positions."""
        return build_parts(self.config, self.adapters)

    @cached_property
    def sources(self) -> dict[str, Source]:
        """stream -> its records; stored latents are those of this configuration."""
        found = open_sources(self.config, self.root)
        check_latents(self.config, found, self.adapters, self.root)
        check_windows(self.config, found, self.adapters)
        return found

    @cached_property
    def streams(self) -> dict[str, Stream]:
        return build_streams(self.config, self.parts, self.sources)

    @cached_property
    def labels(self) -> list[str]:
        """Class names, in the order of the trunk's label table."""
        return class_names(self.sources.values()) if self.stored is None else self.stored["labels"]

    @cached_property
    def normalization(self) -> dict[str, LatentNormalization]:
        """modality -> statistics of its latents."""
        if self.stored is not None:
            return statistics.stored(self.stored, self.adapters)
        return statistics.measured(self.config, self.streams)

    # What samples are conditioned on and compared with.

    @cached_property
    def conditions(self) -> Conditions:
        return Conditions(self.config.condition, self.labels)

    @cached_property
    def text(self) -> TextEncoder | None:
        """The frozen text encoder, on the device, read when a caption needs it; None where there is none."""
        found = build_text_encoder(self.config, self.root)
        if found is not None:
            digest = text_digest(self.config, self.sources) if self.stored is None else self.stored.get("text", "")
            found.to(self.device).expect(digest)
        return found

    @cached_property
    def encoders(self) -> Encoders:
        """stream -> name of the target -> frozen encoder of the clean media, on the device."""
        found = build_encoders(self.config, self.adapters, self.root)
        return {
            stream: {name: encoder.to(self.device) for name, encoder in own.items()} for stream, own in found.items()
        }

    @cached_property
    def projectors(self) -> dict[str, ProjectorSpec]:
        if self.stored is not None:
            return {name: ProjectorSpec(*spec) for name, spec in self.stored["projectors"].items()}
        return projector_specs(self.config.alignment, target_channels(self.encoders))

    # What is trained, on what.

    @cached_property
    def trunk(self) -> Trunk:
        """The student with its initial weights."""
        return build_trunk(self.config, self.adapters, self.labels, self.projectors)

    @cached_property
    def objective(self) -> Objective:
        return Objective(build_alignment(self.config.alignment, self.trunk.depth))

    @cached_property
    def earlier(self) -> list[MixPiece]:
        """Shares and batches that the run had before they were changed."""
        return []

    @cached_property
    def dataset(self) -> StepDataset:
        """The batches of the run. Raises DataError when the first sample of a stream cannot be made."""
        entries = self.config.streams
        weights = step_shares(self.config, self.sources)
        batches = {name: entry.batch for name, entry in entries.items()}
        mix = StreamMix(self.config.seed, weights, batches, self.earlier)
        noising, accumulate = self.config.noising, self.config.training.accumulate
        world = self.world
        found = StepDataset(
            self.config.seed, mix, self.streams, noising, self.conditions, accumulate, world.rank, world.size
        )
        found.check()
        return found

    @cached_property
    def preprocess(self) -> DevicePreprocess:
        """Completes the batches on the device."""
        return DevicePreprocess(self.parts, self.normalization, self.encoders, self.text)

    @cached_property
    def generator(self) -> Generator:
        """The trunk with everything that turns its tokens into media."""
        return Generator(self.trunk, self.parts, self.normalization, self.conditions, self.device, self.text)

    def leave_empty(self) -> None:
        """Build the trunk on the meta device: it has no storage until it is given some."""
        _ = self.adapters, self.labels, self.projectors  # these are real
        with torch.device("meta"):
            _ = self.trunk

    # What is read from disk on request, and what is kept.

    def load_autoencoders(self) -> None:
        """Read those that training encodes with, so that missing weights are reported at once."""
        encoding = {name: self.adapters[name] for name, s in self.config.streams.items() if not s.data.holds_latents}
        load_autoencoders(self.config, encoding)

    def load_text_encoder(self) -> None:
        """Read it where training reads captions without stored features."""
        if self.text is not None and not self.dataset.stores_text():
            self.text.load()

    def to_store(self) -> dict[str, Any]:
        """What every checkpoint holds besides the tensors: plain data, enough to be `stored` of another assembly.

        Latent statistics that come with an autoencoder's weights stay with them: they can be megabytes. Where the data
        are latents, no weights are read, and the statistics are stored too.
        """
        left_out = statistics.published(self.config, self.adapters)
        return {
            "config": to_plain(self.settings),
            "root": str(self.root.resolve()),
            "labels": self.labels,
            "normalization": {
                name: values.to_dict() for name, values in self.normalization.items() if name not in left_out
            },
            "projectors": {name: [spec.kind, spec.out] for name, spec in self.projectors.items()},
            "autoencoders": latent_digests(self.sources, self.adapters),
            "text": text_digest(self.config, self.sources),
            "shares": self.config.training.accumulate * self.world.size,
        }
