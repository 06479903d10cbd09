"""What `selfflow encode` makes of a configuration: one job for each modality, and the settings that its parts share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from configs.latents import media_settings, text_settings
from configs.networks import build_adapters, build_text_encoder, load_autoencoders
from configs.schema import Config, StreamConfig
from configs.sources import open_sources
from core.errors import ConfigError, nearest
from core.training.config import to_plain
from modalities.base import ModalityAdapter
from modalities.data.stored import DTYPES, FORMAT, TextFeatures, stored_manifests
from modalities.encoding.encode import CaptionEncoder, Job


@dataclass(frozen=True)
class EncodeOptions:
    """
    Attributes:
        views: samples of each record, differently cropped or cut.
        part: records that are published together.
        dtype: of stored latents, float16 or float32.
        text: store features of the captions too.
    """

    views: int = 1
    part: int = 1024
    dtype: str = "float16"
    text: bool = False

    def problems(self) -> list[str]:
        found = [f"--{n}: {getattr(self, n)} must be at least 1" for n in ("views", "part") if getattr(self, n) < 1]
        if self.dtype not in DTYPES:
            found.append(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}.{nearest(self.dtype, DTYPES)}")
        return found


@dataclass(frozen=True)
class Encoding:
    """One modality to encode.

    Attributes:
        settings: what the bytes depend on; parts are only added to a folder that was begun with the same.
        about: the fields of the manifest that only the configuration knows.
    """

    job: Job
    settings: dict[str, Any]
    about: dict[str, Any]


def build_encodings(config: Config, root: Path, options: EncodeOptions, modality: str | None) -> dict[str, Encoding]:
    """modality -> what to encode, with all weights read. `root` is what relative paths start from.

    Raises ConfigError for wrong options, data that cannot be opened or are latents already, and missing weights.
    """
    if problems := options.problems():
        raise ConfigError(problems)
    config = only(config, modality)
    adapters, sources = build_adapters(config, root), open_sources(config, root)
    for name, source in sources.items():
        if stored_manifests(source):
            raise ConfigError(f"modalities.{name}.data: holds latents already; name the media that they were made of")
    device = config.training.torch_device()
    for adapter in adapters.values():
        adapter.to(device)
    load_autoencoders(adapters)
    text = caption_encoder(config, root, options.text)
    found = {}
    for name, stream in config.modalities.streams().items():
        job = Job(
            modality=name,
            source=sources[name],
            adapter=adapters[name],
            seed=config.seed,
            views=options.views,
            part=options.part,
            dtype=options.dtype,
            limit=config.training.data_limit,
            text=text,
        )
        found[name] = Encoding(job, settings(job, stream), about(job, stream))
    return found


def caption_encoder(config: Config, root: Path, wanted: bool) -> CaptionEncoder | None:
    """The frozen text encoder with its weights read, None where no features are wanted."""
    if not wanted:
        return None
    encoder = build_text_encoder(config, root)
    if encoder is None:
        raise ConfigError("--text: condition.encoder is not set, so there are no features to store; leave --text out")
    encoder.to(config.training.torch_device()).load()
    dtype = str(encoder.dtype).removeprefix("torch.")
    settings = text_settings(config.condition.encoder)
    return CaptionEncoder(encoder, TextFeatures(settings, encoder.path, encoder.digest(), encoder.width, dtype))


def only(config: Config, modality: str | None) -> Config:
    """The configuration with one modality alone, or as it is."""
    streams = config.modalities.streams()
    if modality is None:
        return config
    if modality not in streams:
        raise ConfigError(f"--modality: the configuration has no {modality}; it has {', '.join(streams)}")
    others = {entry.name: None for entry in fields(config.modalities) if entry.name != modality}
    return replace(config, modalities=replace(config.modalities, **others))


def settings(job: Job, stream: StreamConfig) -> dict[str, Any]:
    """Everything that a stored sample depends on. Where the weights lie is not of it: their digest is."""
    autoencoder = autoencoder_settings(stream, job.adapter)
    text = None if job.text is None else asdict(job.text.features)
    return {
        "format": FORMAT,
        "modality": job.modality,
        "records": len(job.source),
        "source": job.source.fingerprint(),
        "seed": job.seed,
        "views": job.views,
        "part": job.part,
        "dtype": job.dtype,
        "grid": list(job.adapter.grid()),
        "channels": job.adapter.channels,
        "autoencoder": {key: value for key, value in autoencoder.items() if key != "path"},
        "media": media_settings(stream),
        "text": None if text is None else {key: value for key, value in text.items() if key != "path"},
    }


def about(job: Job, stream: StreamConfig) -> dict[str, Any]:
    return {
        "autoencoder": autoencoder_settings(stream, job.adapter),
        "media": media_settings(stream),
        "source": {"kind": stream.data.kind, "path": stream.data.path, "fingerprint": job.source.fingerprint()},
    }


def local_path(adapter: ModalityAdapter) -> str | None:
    """Where the weights are: an absolute path, or their name on the hub."""
    path = adapter.config.autoencoder.path
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


def autoencoder_settings(stream: StreamConfig, adapter: ModalityAdapter) -> dict[str, Any]:
    """The section of the configuration with what was left out, and the digest of the weights ("" without weights)."""
    found = to_plain(stream.media.autoencoder)
    found["path"] = local_path(adapter)
    if adapter.has_weights:
        found["precision"] = found["precision"] or "fp32"
        found["posterior"] = "sample" if adapter.posterior_noise else "mean"
    return found | {"digest": adapter.autoencoder.digest()}
