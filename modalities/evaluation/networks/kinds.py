"""Which network turns which modality into features, and how a configuration names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import ConfigError, nearest
from modalities.evaluation.networks.base import WITHOUT, FeatureNetwork, Framewise
from modalities.evaluation.networks.classifier import Classifier
from modalities.evaluation.networks.efficientnet import EfficientNet
from modalities.evaluation.networks.inception import TAKES as INCEPTION_TAKES
from modalities.evaluation.networks.inception import Inception
from modalities.evaluation.networks.pretrained import Clap, Clip, DinoV2
from modalities.evaluation.networks.video import I3D, VideoMAE


def _clap(path: str, rate: int | None) -> Clap:
    assert rate is not None  # `build_network` asks for one
    return Clap(path, rate)


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        modality: of the network itself; "" for any.
        build: path, sample rate -> network.
        takes: what `path` must be, in words.
    """

    modality: str
    build: Callable[[str, int | None], FeatureNetwork]
    takes: str


KINDS: dict[str, Kind] = {
    "inception": Kind("image", lambda path, rate: Inception(path), INCEPTION_TAKES),
    "dinov2": Kind("image", lambda path, rate: DinoV2(path), DinoV2.TAKES),
    "clip": Kind("image", lambda path, rate: Clip(path), Clip.TAKES),
    "efficientnet_lite0": Kind("image", lambda path, rate: EfficientNet(path), EfficientNet.TAKES),
    "videomae": Kind("video", lambda path, rate: VideoMAE(path), VideoMAE.TAKES),
    "i3d": Kind("video", lambda path, rate: I3D(path), I3D.TAKES),
    "clap": Kind("audio", _clap, Clap.TAKES),
    "classifier": Kind("", lambda path, rate: Classifier.load(path), "a file that `Classifier.save` wrote"),
}


@dataclass
class NetworkConfig:
    """
    Attributes:
        kind: a key of `KINDS`.
        path: of the weights: a file, a folder, or a hub id, as the kind takes them. A classifier without a path is one
            still to be trained (`train_classifier`).
    """

    kind: str = "classifier"
    path: str = ""

    def problems(self) -> list[str]:
        if self.kind not in KINDS:
            return [f"kind: {self.kind!r} is not one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}"]
        if not self.path and self.kind != "classifier":
            return [f"path: empty, kind {self.kind!r} takes {KINDS[self.kind].takes}. {WITHOUT}"]
        return []


def kinds_for(modality: str) -> list[str]:
    """Kinds that measure a modality; image networks measure videos frame by frame."""
    fitting = ("", "image", "video") if modality == "video" else ("", modality)
    return [kind for kind, entry in KINDS.items() if entry.modality in fitting]


def build_network(
    config: NetworkConfig,
    modality: str,
    *,
    sample_rate: int | None = None,
    root: Path | None = None,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """The frozen network of a configuration, on `device`. An image network over videos comes as `Framewise`.

    Args:
        sample_rate: of audio clips, Hz.
        root: a relative path that exists below it is taken from there (the configuration file's folder).

    Raises:
        ConfigError: a wrong setting, a kind that does not measure the modality, or transformers is not installed.
        CheckpointError: no usable weights at the path; the message says which file or folder it takes.
    """
    if found := config.problems():
        raise ConfigError(found)
    if config.kind not in kinds_for(modality):
        raise ConfigError(
            f"kind: {config.kind!r} measures {KINDS[config.kind].modality}, not {modality}; "
            f"for {modality} there are {', '.join(kinds_for(modality))}"
        )
    if modality == "audio" and not sample_rate:
        raise ConfigError(f"sample_rate: {sample_rate} must be given for audio clips, in Hz")
    if not config.path:
        raise ConfigError(
            "path: empty, and a classifier comes from a file or from training: train_classifier(...).save(path)"
        )
    path = config.path
    if root is not None and (root / path).exists():
        path = str(root / path)
    network = KINDS[config.kind].build(path, sample_rate)
    if isinstance(network, Classifier):
        if network.modality != modality or network.sample_rate != (sample_rate if modality == "audio" else None):
            rate = f" at {network.sample_rate} Hz" if network.sample_rate else ""
            asked = f" at {sample_rate} Hz" if modality == "audio" else ""
            raise ConfigError(f"path: {path} is a classifier of {network.modality}{rate}, not of {modality}{asked}")
    elif modality == "video" and KINDS[config.kind].modality == "image":
        network = Framewise(network)
    return network.to(device)
