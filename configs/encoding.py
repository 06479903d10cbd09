"""What `selfflow encode` makes of a configuration: one job for each stream, and the settings that its parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoencoders.pretrained import weights_path
from configs.assembly import Assembly
from configs.assembly.adapters import load_autoencoders
from configs.assembly.latents import media_settings, text_settings
from configs.schema import Config
from core.errors import ConfigError, nearest
from core.training.config import to_plain
from modalities.base import ModalityAdapter
from modalities.data.sources.config import SourceConfig
from modalities.latents.encode import CaptionEncoder, Job
from modalities.latents.format import DTYPES, FORMAT, TextFeatures, stored_manifests


@dataclass(frozen=True)
class EncodeOptions:
    """
    Attributes:
        views: samples of each record, differently cropped or cut.
        chunk: records that are published together.
        dtype: of stored latents, float16 or float32.
        text: store features of the captions too.
    """

    views: int = 1
    chunk: int = 1024
    dtype: str = "float16"
    text: bool = False

    def problems(self) -> list[str]:
        found = [f"--{n}: {getattr(self, n)} must be at least 1" for n in ("views", "chunk") if getattr(self, n) < 1]
        if self.dtype not in DTYPES:
            found.append(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}.{nearest(self.dtype, DTYPES)}")
        return found


@dataclass(frozen=True)
class Encoding:
    """One stream to encode.

    Attributes:
        settings: what the bytes depend on; chunks are only added to a folder that was begun with the same.
        about: what only the configuration knows of the manifest, see `publish`.
    """

    job: Job
    settings: dict[str, Any]
    about: dict[str, Any]


def build_encodings(config: Config, root: Path, options: EncodeOptions, stream: str | None) -> dict[str, Encoding]:
    """stream -> what to encode, with all weights read. `root` is what relative paths start from.

    Raises ConfigError for wrong options, data that cannot be opened or are latents already, and missing weights.
    """
    if problems := options.problems():
        raise ConfigError(problems)
    assembly = Assembly(only(config, stream), root, device=config.training.torch_device())
    config = assembly.config
    for name, source in assembly.sources.items():
        if stored_manifests(source):
            raise ConfigError(f"streams.{name}.data: holds latents already; name the media that they were made of")
    load_autoencoders(config, assembly.adapters)
    text = caption_encoder(assembly, options.text)
    found = {}
    for name, entry in config.streams.items():
        job = Job(
            stream=name,
            source=assembly.sources[name],
            parts=assembly.parts[name],
            seed=config.seed,
            views=options.views,
            chunk=options.chunk,
            dtype=options.dtype,
            limit=config.training.data_limit,
            text=text,
        )
        media = {part: own.media for part, own in entry.named_parts(name).items()}
        found[name] = Encoding(job, settings(job, media), about(job, media, entry.data))
    return found


def caption_encoder(assembly: Assembly, wanted: bool) -> CaptionEncoder | None:
    """The frozen text encoder with its weights read, None where no features are wanted."""
    if not wanted:
        return None
    encoder, config = assembly.text, assembly.config.condition.text_encoder()
    if encoder is None or config is None:
        raise ConfigError("--text: condition.encoder is not set, so there are no features to store; leave --text out")
    encoder.load()
    dtype = str(encoder.dtype).removeprefix("torch.")
    settings = text_settings(config)
    return CaptionEncoder(encoder, TextFeatures(settings, encoder.path, encoder.digest(), encoder.width, dtype))


def only(config: Config, stream: str | None) -> Config:
    """The configuration with one stream alone, or as it is."""
    if stream is None:
        return config
    if stream not in config.streams:
        raise ConfigError(f"--stream: the configuration has no {stream}; it has {', '.join(config.streams)}")
    return replace(config, streams={stream: config.streams[stream]})


def settings(job: Job, media: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a stored sample depends on. Where the weights lie is not of it: their digest is.

    Args:
        media: section `media` of every part.
    """
    text = None if job.text is None else asdict(job.text.features)
    return {
        "format": FORMAT,
        "stream": job.stream,
        "records": len(job.source),
        "source": job.source.fingerprint(),
        "seed": job.seed,
        "views": job.views,
        "chunk": job.chunk,
        "dtype": job.dtype,
        "parts": {name: part_settings(part.adapter, media[name]) for name, part in job.parts.items()},
        "text": None if text is None else {key: value for key, value in text.items() if key != "path"},
    }


def part_settings(adapter: ModalityAdapter, media: Any) -> dict[str, Any]:
    autoencoder = autoencoder_settings(media, adapter)
    return {
        "modality": adapter.modality,
        "grid": list(adapter.grid()),
        "channels": adapter.channels,
        "autoencoder": {key: value for key, value in autoencoder.items() if key != "path"},
        "media": media_settings(media),
    }


def about(job: Job, media: Mapping[str, Any], data: SourceConfig) -> dict[str, Any]:
    return {
        "parts": {
            name: {
                "autoencoder": autoencoder_settings(media[name], part.adapter),
                "media": media_settings(media[name]),
            }
            for name, part in job.parts.items()
        },
        "source": {"kind": data.kind, "path": ", ".join(data.paths()), "fingerprint": job.source.fingerprint()},
    }


def local_path(adapter: ModalityAdapter) -> str | None:
    """Where the weights are: an absolute path, or their name on the hub."""
    path = weights_path(adapter.config.autoencoder)
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


def autoencoder_settings(media: Any, adapter: ModalityAdapter) -> dict[str, Any]:
    """The section of the configuration, and the digest of the weights ("" without weights)."""
    found = to_plain(media.autoencoder)
    found["path"] = local_path(adapter)
    return found | {"digest": adapter.autoencoder.digest()}
