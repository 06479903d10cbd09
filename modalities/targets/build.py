"""From an encoder's settings to the frozen encoder: which kinds there are, and what fits which modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from core.errors import ConfigError, ShapeError, nearest
from modalities.targets.efficientnet import PACKAGE, efficientnet_lite0
from modalities.targets.encoder import Encoder, Parts, Request, refuse_interpolation
from modalities.targets.mert import mert
from modalities.targets.timing import audio_spans, frame_spans
from modalities.targets.vision import depth_anything, dinov2, siglip2
from modalities.targets.vjepa2 import vjepa2
from modalities.targets.weights import Folder, open_folder

RESAMPLE = ("features", "refuse")
VISUAL = ("image", "video")


@dataclass(frozen=True)
class Family:
    """One kind of encoder.

    Attributes:
        build: makes its parts; raises ConfigError or CheckpointError.
        modalities: what it encodes.
        types: `model_type` of the config.json files that it reads.
        example: a published model.
        is_file: its path is a file of weights, which needs no transformers, and not a folder.
        channels: of published models, by their names on the hub; what a projector must know where the weights are not
            at hand.
    """

    build: Callable[[Folder, Request, str], Parts]
    modalities: tuple[str, ...]
    types: tuple[str, ...]
    example: str
    channels: Mapping[str, int]
    is_file: bool = False


FAMILIES = {
    "dinov2": Family(
        dinov2,
        VISUAL,
        ("dinov2", "dinov2_with_registers"),
        "facebook/dinov2-base",
        {
            "facebook/dinov2-small": 384,
            "facebook/dinov2-base": 768,
            "facebook/dinov2-large": 1024,
            "facebook/dinov2-giant": 1536,
        },
    ),
    "siglip2": Family(
        siglip2,
        VISUAL,
        ("siglip2", "siglip2_vision_model", "siglip", "siglip_vision_model"),
        "google/siglip2-base-patch16-256",
        {"google/siglip2-base-patch16-256": 768},
    ),
    "vjepa2": Family(
        vjepa2,
        VISUAL,
        ("vjepa2",),
        "facebook/vjepa2-vitl-fpc64-256",
        {"facebook/vjepa2-vitl-fpc64-256": 1024},
    ),
    "depth_anything": Family(
        depth_anything,
        VISUAL,
        ("depth_anything",),
        "depth-anything/Depth-Anything-V2-Small-hf",
        {
            "depth-anything/Depth-Anything-V2-Small-hf": 384,
            "depth-anything/Depth-Anything-V2-Base-hf": 768,
            "depth-anything/Depth-Anything-V2-Large-hf": 1024,
        },
    ),
    "efficientnet_lite0": Family(efficientnet_lite0, VISUAL, (), PACKAGE, {}, is_file=True),
    "mert": Family(
        mert,
        ("audio",),
        ("mert_model",),
        "m-a-p/MERT-v1-95M",
        {"m-a-p/MERT-v1-95M": 768, "m-a-p/MERT-v1-330M": 1024},
    ),
}
DEPTH_ANYTHING_3 = "Depth Anything 3 has no class in transformers; kind depth_anything reads V1 and V2"


@dataclass
class EncoderConfig:
    """
    Attributes:
        kind: dinov2 (with or without registers), siglip2, vjepa2, depth_anything or efficientnet_lite0 for images and
            video; mert for audio.
        path: a folder with config.json, model.safetensors and preprocessor_config.json, or a name on the hub. For
            efficientnet_lite0 a file; package:NAME/FILE is one inside an installed package.
        layer: 1-based block of the encoder whose output is the feature, after the encoder's own final normalization;
            null is the last (REPA).
        resample: where an encoder's time steps do not coincide with the trunk's (tubelets, audio frames), features
            are interpolated in time, or refuse. Whole groups of frames or tubelets are averaged either way.
    """

    kind: str = "dinov2"
    path: str = ""
    layer: int | None = None
    resample: str = "features"

    def problems(self) -> list[str]:
        found = []
        if self.kind not in FAMILIES:
            hint = f" {DEPTH_ANYTHING_3}." if _names_depth_anything_3(self.kind) else nearest(self.kind, FAMILIES)
            found.append(f"kind: {self.kind!r} is not one of {', '.join(FAMILIES)}.{hint}")
        if not self.path:
            example = FAMILIES[self.kind].example if self.kind in FAMILIES else FAMILIES["dinov2"].example
            found.append(f"path: must be a folder with the encoder's weights, or a name on the hub such as {example}")
        if self.layer is not None and self.layer < 1:
            found.append(f"layer: {self.layer} must be at least 1, or null for the last")
        if self.resample not in RESAMPLE:
            hint = nearest(self.resample, RESAMPLE)
            found.append(f"resample: {self.resample!r} is not one of {', '.join(RESAMPLE)}.{hint}")
        return found


def build_encoder(
    config: EncoderConfig,
    modality: str,
    media_size: tuple[int, ...],
    grid: tuple[int, int, int],
    time_stride: int = 1,
    sample_rate: int | None = None,
) -> Encoder:
    """The frozen encoder of one modality, in float32 on the CPU.

    Args:
        modality: image, video or audio.
        media_size: of the adapter's media: (H, W), (T, H, W) or (samples,).
        grid: the trunk's tokens along (t, h, w); features come in this order.
        time_stride: frames or samples that one latent step stands for, the first number of LatentSpec.stride.
        sample_rate: of an audio clip, samples per second.

    Raises:
        ConfigError: settings that are wrong, an encoder of another modality or kind, weights that are not there.
        CheckpointError: weights that do not fit the encoder's class.
        ShapeError: media_size, grid and time_stride contradict each other.
    """
    if found := config.problems():
        raise ConfigError(f"encoder.{line}" for line in found)
    family = FAMILIES[config.kind]
    if modality not in family.modalities:
        fitting = [kind for kind, other in FAMILIES.items() if modality in other.modalities]
        raise ConfigError(
            f"encoder.kind: {config.kind!r} does not encode {modality}; "
            + (f"allowed: {', '.join(fitting)}" if fitting else f"there is no encoder of {modality}")
        )
    shape, request = _request(config, modality, tuple(media_size), tuple(grid), time_stride, sample_rate)
    if family.is_file:
        folder = Folder(config.path, {}, {})
    else:
        folder = open_folder(config.kind, config.path, family.example)
        _check_type(config, family, folder)
    parts = family.build(folder, request, family.example)
    if config.resample == "refuse":
        refuse_interpolation(config.kind, parts, request)
    return Encoder(shape, parts, request)


def _request(
    config: EncoderConfig,
    modality: str,
    size: tuple[int, ...],
    grid: tuple[int, ...],
    stride: int,
    rate: int | None,
) -> tuple[tuple[int | None, ...], Request]:
    """(shape of one sample's media, what the trunk wants), checked."""
    dimensions = {"image": 2, "video": 3, "audio": 1}[modality]
    if len(size) != dimensions or len(grid) != 3 or min(*size, *grid, stride) < 1:
        raise ShapeError(
            f"encoder: {modality} of size {size} with grid {grid} and time stride {stride}: expected {dimensions} "
            "numbers, 3 numbers and 1 number, all above 0"
        )
    if (modality == "image" and grid[0] != 1) or (modality == "audio" and grid[1:] != (1, 1)):
        raise ShapeError(
            f"encoder: grid {grid} of {modality}: expected {'(1, h, w)' if modality == 'image' else '(t, 1, 1)'}"
        )
    shape: tuple[int | None, ...]
    if modality == "audio":
        if rate is None or rate < 1:
            raise ShapeError(f"encoder: sample_rate {rate} of an audio clip must be at least 1 Hz")
        shape, length, spans = (None, *size), size[0], audio_spans(size[0], grid[0], stride)
    elif modality == "video":
        shape, length, spans = (size[0], 3, *size[1:]), size[0], frame_spans(size[0], grid[0], stride)
    else:
        shape, length, spans = (3, *size), 1, frame_spans(1, 1, 1)
    return shape, Request(length, grid, spans, rate if modality == "audio" else None, config.layer)


def _check_type(config: EncoderConfig, family: Family, folder: Folder) -> None:
    """Raise ConfigError for the folder of another family."""
    seen = folder.settings.get("model_type")
    if seen in family.types:
        return
    fitting = [kind for kind, other in FAMILIES.items() if seen in other.types]
    if fitting:
        hint = f" Set encoder.kind: {fitting[0]}."
    elif config.kind == "depth_anything" and (seen is None or _names_depth_anything_3(f"{seen} {config.path}")):
        hint = f" {DEPTH_ANYTHING_3}."
    else:
        hint = ""
    raise ConfigError(
        f"encoder.path: {config.path!r} holds a model of type {seen!r}; kind {config.kind!r} reads "
        f"{', '.join(family.types)}, such as {family.example}.{hint}"
    )


def _names_depth_anything_3(name: str) -> bool:
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    return "da3" in plain or "depthanything3" in plain or "depthanythingv3" in plain
