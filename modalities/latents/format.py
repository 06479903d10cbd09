"""Stored latents: one sample as a row of MDS shards, and the manifest that says what all rows are.

A folder that `selfflow encode` has written for one stream holds

    manifest.json           see `Manifest`; written last, so a folder without it is not finished
    index.json              of all shards, as mosaicml-streaming reads it
    chunk-00000/            the shards of records 0, 1, ... of the source, with an index.json of their own
    encode.json             the settings that the folder was begun with
    quarantine.jsonl        records that could not be used

A sample has one part or more; a row holds the latents of each in columns of their own. Latents are raw:
normalization is applied when they are read, so that statistics can be corrected without encoding again. MDS has no
checksum of a sample, so every row carries one over all of its columns.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoders.base import LatentNormalization, Moments, Size
from core.errors import ConfigError, DataError
from modalities.base import Media, Record, Source, StoredLatents

FORMAT = 2
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
ABOUT = {"index", "view", "origin", "bytes"}  # of the record in its source, which view, of which media, how large


@dataclass(frozen=True)
class TextFeatures:
    """What stored features of captions are.

    Attributes:
        encoder: settings of the frozen text encoder, without its path.
        path: where its weights were.
        digest: of its weights.
        width: Dc, of one token.
        dtype: bfloat16 or float32, as the encoder computes them, so that nothing is lost.
    """

    encoder: dict[str, Any]
    path: str
    digest: str
    width: int
    dtype: str


@dataclass(frozen=True)
class StoredPart:
    """One part of every stored sample.

    Attributes:
        modality: such as image, video, audio or action_rt1.
        grid, channels: tokens along (t, h, w) of a sample, and C.
        deviation: rows hold the posterior's deviation next to its mean.
        autoencoder: its section of the configuration, and the `digest` of its weights ("" without weights).
        media: its section `media`, without the autoencoder.
        normalization: mean and std of every channel, and `measured`: over these samples, or published with the weights
            (of actions and states: those of their statistics file).
        valid: rows hold which tokens are no padding.
    """

    modality: str
    grid: Size
    channels: int
    deviation: bool
    autoencoder: dict[str, Any]
    media: dict[str, Any]
    normalization: dict[str, Any]
    valid: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C) of a sample."""
        return prod(self.grid), self.channels

    def statistics(self) -> LatentNormalization:
        return LatentNormalization.from_dict(self.normalization)


@dataclass(frozen=True)
class Manifest:
    """What an encoded folder holds.

    Attributes:
        format: of rows and manifest, FORMAT.
        stream: that was encoded; crops and windows are drawn under its name.
        parts: name -> part, in the order of the segments.
        records, samples, bad: records of the source; samples stored; records of which one view or more could not be
            used.
        views: samples of each record, differently cropped or cut.
        bytes: of all shards.
        dtype: of the stored latents.
        text: of the stored features of captions, None where there are none.
        labels: class names, sorted.
        seed: of crops and windows.
        source: kind, path and fingerprint of the records.
        code: version of this program, and its commit where it is a checkout.
        date: when it was finished.
        shards: name, samples, bytes and sha256 of each file, in order.
    """

    stream: str
    parts: dict[str, StoredPart]
    records: int
    samples: int
    bad: int
    views: int
    bytes: int
    dtype: str
    text: TextFeatures | None
    labels: list[str]
    seed: int
    source: dict[str, Any]
    code: dict[str, Any]
    date: str
    shards: list[dict[str, Any]]
    format: int = FORMAT

    def columns(self) -> dict[str, str]:
        """See `row_columns`."""
        shapes = {name: part.shape for name, part in self.parts.items()}
        sampled = [name for name, part in self.parts.items() if part.deviation]
        padded = [name for name, part in self.parts.items() if part.valid]
        return row_columns(shapes, sampled, self.dtype, self.text is not None, padded)

    def to_json(self) -> str:
        """One line for each field."""
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(self).items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Manifest:
        """Raises ConfigError for text that is no manifest of this format."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{origin}: not valid JSON ({error})") from error
        names = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict) or values.get("format") != FORMAT or set(values) != names:
            seen = values.get("format") if isinstance(values, dict) else None
            raise ConfigError(
                f"{origin}: not a manifest of format {FORMAT} (its format: {seen!r}); encode the data again"
            )
        try:
            features = None if values["text"] is None else TextFeatures(**values["text"])
            parts = {name: StoredPart(**part | {"grid": tuple(part["grid"])}) for name, part in values["parts"].items()}
            found = cls(**values | {"parts": parts, "text": features})
            problems = found.problems()
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{origin}: damaged: {type(error).__name__}: {error}") from error
        if problems:
            raise ConfigError([f"{origin}: {line}" for line in problems])
        return found

    def problems(self) -> list[str]:
        """Where it contradicts itself."""
        found = []
        for name in ("samples", "bytes"):
            seen = sum(shard[name] for shard in self.shards)
            if seen != getattr(self, name):
                found.append(f"{name}: {getattr(self, name)}, but its shards have {seen}")
        if self.dtype not in DTYPES:
            found.append(f"dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not self.parts:
            found.append("parts: there are none")
        for name, part in self.parts.items():
            if (seen := len(part.normalization["mean"])) not in (part.channels, prod(part.grid)):
                found.append(f"parts.{name}.normalization: of {seen} channels, and the latents have {part.channels}")
        return found


def row_columns(
    shapes: Mapping[str, tuple[int, int]],
    sampled: Iterable[str],
    dtype: str,
    text: bool,
    padded: Iterable[str] = (),
) -> dict[str, str]:
    """Column -> MDS encoding of a row.

    Text is JSON, whose escapes also hold the name of a file that is not UTF-8.

    Args:
        shapes: name of the part -> (N, C) of its latents.
        sampled: names of the parts with a deviation.
        padded: names of the parts with a mask of what is no padding.
    """
    arrays = {name: f"ndarray:{dtype}:{tokens},{channels}" for name, (tokens, channels) in shapes.items()}
    found = {"key": "json", "captions": "json", "label": "json", "about": "json", "crc": "uint32"}
    found |= {f"mean.{name}": array for name, array in arrays.items()}
    found |= {f"deviation.{name}": arrays[name] for name in sampled}
    found |= {f"valid.{name}": f"ndarray:uint8:{shapes[name][0]}" for name in padded}
    return found | ({"text": "bytes", "text_rows": "json"} if text else {})


def checksum(row: Mapping[str, Any]) -> int:
    """CRC-32 over the names and values of all columns but `crc`."""
    found = 0
    for name in sorted(row):
        if name != "crc":
            value = row[name]
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value).tobytes()
            elif not isinstance(value, bytes):
                value = json.dumps(value, sort_keys=True).encode()
            found = zlib.crc32(value, zlib.crc32(name.encode(), found))
    return found


def pack(
    record: Record,
    about: dict[str, Any],
    dtype: str,
    latents: Mapping[str, StoredLatents],
    text: list[Tensor] | None,
) -> dict[str, Any]:
    """One row.

    Args:
        record: with the key that the sample is to have; its media are not looked at.
        about: where it comes from: origin, view, ...
        latents: by part.
        text: features (S, Dc) of every caption, without padding, in the manifest's dtype; None where none are stored.

    Raises ConfigError for a value that float16 cannot hold.
    """
    row: dict[str, Any] = {
        "key": record.key,
        "captions": None if record.unconditional else list(record.captions),
        "label": record.label,
        "about": about,
    }
    for name, values in latents.items():
        row[f"mean.{name}"] = _as_array(values.mean, dtype, f"{record.origin}: its {name} latents hold")
        if values.deviation is not None:
            what = f"{record.origin}: the deviation of its {name} latents holds"
            row[f"deviation.{name}"] = _as_array(values.deviation, dtype, what)
        if values.valid is not None:
            row[f"valid.{name}"] = values.valid.numpy().astype(np.uint8)
    if text is not None:
        row["text_rows"] = [len(features) for features in text]
        row["text"] = b"".join(features.contiguous().view(torch.uint8).numpy().tobytes() for features in text)
    return row | {"crc": checksum(row)}


def _as_array(values: Tensor, dtype: str, what: str) -> np.ndarray:
    largest = float(values.abs().max())
    if dtype == "float16" and largest > torch.finfo(torch.float16).max:
        raise ConfigError(f"{what} {largest:.6g}, and float16 ends at 65504: encode with --dtype float32")
    return values.numpy().astype(dtype)


def unpack(row: Mapping[str, Any], manifest: Manifest, origin: str) -> Record:
    """A row as a Record whose parts are StoredLatents.

    Raises DataError for a row that is damaged, is not what the manifest says, or holds latents that are not finite.
    """
    wanted = set(manifest.columns())
    if set(row) != wanted:
        raise DataError(
            f"{origin}: expected the columns {', '.join(sorted(wanted))}, got {', '.join(sorted(map(str, row)))}"
        )
    if checksum(row) != int(row["crc"]):
        raise DataError(f"{origin}: damaged: its checksum does not fit")
    origin = f"{origin}: {row['key']}"
    if set(row["about"]) != ABOUT:
        raise DataError(f"{origin}: expected {', '.join(sorted(ABOUT))} in the column 'about', got {row['about']}")

    def stored(column: str, shape: tuple[int, int]) -> Tensor:
        return _as_tensor(row[column], shape, manifest.dtype, f"{origin}: {column}")

    parts = {}
    for name, part in manifest.parts.items():
        mean = stored(f"mean.{name}", part.shape)
        deviation = stored(f"deviation.{name}", part.shape) if part.deviation else None
        valid = _as_mask(row[f"valid.{name}"], part.shape[0], f"{origin}: valid.{name}") if part.valid else None
        parts[name] = Media(StoredLatents(mean, deviation, valid))
    return Record(
        key=row["key"],
        origin=row["about"]["origin"],  # of the media, so that records of two encodings can be recognized as the same
        media=b"",  # a part of another name has none
        captions=tuple(row["captions"] or ()),
        unconditional=row["captions"] is None,
        label=row["label"],
        parts=parts,
        text=() if manifest.text is None else _split_text(row, manifest.text, origin),
    )


def _as_tensor(values: np.ndarray, shape: tuple[int, int], dtype: str, what: str) -> Tensor:
    if values.shape != shape or values.dtype != dtype:
        raise DataError(
            f"{what}: expected {dtype} {shape} as the manifest says, got {values.dtype} {tuple(values.shape)}"
        )
    found = torch.from_numpy(values.astype(np.float32))  # a copy: the bytes of a shard may not be written to
    if not bool(found.isfinite().all()):
        raise DataError(f"{what}: the latents hold NaN or infinite values")
    return found


def _as_mask(values: np.ndarray, tokens: int, what: str) -> Tensor:
    if values.shape != (tokens,) or values.max(initial=0) > 1:
        raise DataError(f"{what}: expected a mask of {tokens} tokens, got {values.dtype} {tuple(values.shape)}")
    return torch.from_numpy(values.astype(bool))


def _split_text(row: Mapping[str, Any], features: TextFeatures, origin: str) -> tuple[Tensor, ...]:
    rows, data, dtype = row["text_rows"], row["text"], getattr(torch, features.dtype)
    if len(rows) != len(row["captions"] or ()) or len(data) != dtype.itemsize * features.width * sum(rows):
        raise DataError(f"{origin}: the stored text features do not fit its {len(row['captions'] or ())} captions")
    if not rows:
        return ()
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(-1, features.width).split(rows)


def stored_manifests(source: Source) -> list[Manifest]:
    """Manifests of every folder of stored latents that a source reads; empty for sources of media."""
    ask = getattr(source, "stored", None)
    return ask() if ask else []


def merged_statistics(manifests: list[Manifest], part: str, floor: float = 0.01) -> LatentNormalization:
    """Latent normalization of a part in several folders of one autoencoder: published, or that of all samples together.

    `floor` is that of `LatentNormalization.from_moments`, for statistics that were measured.
    """
    if not manifests[0].parts[part].normalization["measured"]:
        return manifests[0].parts[part].statistics()
    moments = Moments()
    for manifest in manifests:
        found, count = manifest.parts[part].statistics(), manifest.samples * manifest.parts[part].shape[0]
        moments.merge(Moments(count, found.mean.double(), found.std.double().square() * count))
    return LatentNormalization.from_moments(moments, floor)


def read_manifest(folder: Path) -> Manifest:
    """Raises ConfigError for a folder that holds no finished encoding, or a manifest that contradicts itself."""
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / "encode.json").is_file()
        found = sorted(each.parent.name for each in folder.glob(f"*/{MANIFEST}"))
        hint = (
            "its encoding is not finished: run the same `selfflow encode` again"
            if begun
            else f"it holds {', '.join(found)}: add the stream to the path"
            if found
            else "write it with `selfflow encode`"
        )
        raise ConfigError(f"path: {folder} has no {MANIFEST}; {hint}")
    return Manifest.from_json(path.read_text(encoding="utf-8"), str(path))
