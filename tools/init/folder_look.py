"""What a folder of media holds, from a bounded number of its files: for `selfflow init`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import ConfigError, DataError
from modalities.base import Record, Source
from modalities.conditioning import split_words, word_limit
from modalities.data.caption_lengths import CaptionLengths, caption_lengths
from modalities.data.order import Order
from modalities.data.sources.build import MEDIA_SOURCES, build_source
from modalities.data.sources.config import MediaConfig
from modalities.data.sources.parquet import ParquetConfig
from modalities.data.sources.selection import SUFFIXES
from modalities.media.audio import probe_audio
from modalities.media.images import IMAGE_ERRORS
from modalities.media.video import index_video, read_frames

PROBED = {"image": 64, "video": 16, "audio": 32}  # files whose size is looked at
CAPTIONED = 512  # records whose captions are
FEWEST = 20  # records from which on some are held out
HELD_OUT = 2000  # records that are enough of these
TRAINING, TESTING = ("train", "training"), ("val", "valid", "validation", "test", "val", "held-out", "held_out")
CAPTIONED_ENOUGH = 0.5  # share of records from which on captions are the condition
MISSING = "(no caption)"
# Fields and columns that hold captions, or classes, in published data sets; the first that is there is taken.
CAPTION_FIELDS = (["caption", "captions"], ["text"], ["prompt"], ["description"], ["title"], ["sentence"])
LABEL_FIELDS = ("label", "class", "category", "cls", "genre")
SIDECARS = (".txt", ".json")


@dataclass(frozen=True)
class Files:
    """What media of one modality are like; medians unless said otherwise, None where it does not apply.

    Attributes:
        height, width: pixels.
        rate: frames or samples per second.
        seconds, shortest: of a file; `shortest` is that of the 5% that are shorter.
        channels: of an audio clip.
    """

    height: int | None = None
    width: int | None = None
    rate: float | None = None
    seconds: float | None = None
    shortest: float | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Found:
    """One modality of a folder.

    Attributes:
        data: reads all of its records, without captions.
        val: records of a folder of their own, or None.
        captioned: share of the records that were looked at with a caption, in `caption_fields`; `captions` are their
            lengths, and `words` how many different ones there are.
        bad, probed: files that could not be opened, of those whose size was looked at.
    """

    data: MediaConfig
    val: MediaConfig | None
    records: int
    classes: list[str]
    captioned: float
    caption_fields: list[str]
    captions: CaptionLengths | None
    words: int
    files: Files
    bad: int
    probed: int


@dataclass
class Look:
    """All of a folder; `notes` name what is not used, and why."""

    found: dict[str, Found] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def look_at(path: Path, only: Iterable[str] = ()) -> Look:
    """Raises ConfigError for a path that is not there or holds nothing that can be trained on."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a folder of media, a .tar or a .parquet")
    result, failed = Look(), []
    wanted = tuple(only) or tuple(SUFFIXES)
    for modality in wanted:
        for data, val in candidates(path, modality, result.notes):
            try:
                source = build_source(data, modality, Path.cwd())
                if modality in result.found:
                    kind = {"webdataset": "in tars", "parquet": "in Parquet files"}[data.kind]
                    result.notes.append(
                        f"{modality} {kind}: not read beside what was found before; `selfflow init` them"
                    )
                    continue
                result.found[modality] = _look(data, val, modality, source)
            except (ConfigError, DataError) as error:
                failed.append(f"{modality}: {str(error).splitlines()[0]}")
                if _holds_some(path, modality):
                    result.notes.append(failed[-1])
    if path.is_dir():
        result.notes += unread(path)
    if not result.found:
        lines = [f"{path} holds nothing that can be trained on; allowed are images, videos and audio"]
        raise ConfigError([*lines, *(f"  {note}" for note in dict.fromkeys([*failed, *result.notes]))])
    result.notes = list(dict.fromkeys(result.notes))
    return result


def candidates(path: Path, modality: str, notes: list[str]) -> list[tuple[MediaConfig, MediaConfig | None]]:
    """Sources that could read the path, loose files first, each with its held-out records where these lie apart."""
    training, testing = path, None
    if path.is_dir():
        folders = {each.name.lower(): each for each in sorted(path.iterdir()) if each.is_dir()}
        train = next((folders[name] for name in TRAINING if name in folders), None)
        test = [folders[name] for name in TESTING if name in folders]
        if train is not None:
            training, testing = train, next(iter(test), None)
            others = [each.name for each in folders.values() if each not in (training, testing)]
            if others:
                notes.append(f"folders beside {train.name}, not read: {', '.join(others)}")
    found = []
    for kind, suffix in (("folder", None), ("webdataset", ".tar"), ("parquet", ".parquet")):
        if training.is_file() != (suffix is not None and training.suffix == suffix) and training.is_file():
            continue
        if suffix and training.is_dir() and not any(training.glob(f"*{suffix}")):
            continue
        plain = MEDIA_SOURCES[kind](path=str(training.resolve()), captions="none")
        tables = isinstance(plain, ParquetConfig)
        columns = media_columns(training, modality) if tables else []
        for data in [replace(plain, media_field=name) for name in columns] if tables else [plain]:
            held = None if testing is None else replace(data, path=str(testing.resolve()))
            found.append((data, held))
    return found


def media_columns(path: Path, modality: str) -> list[str]:
    """Columns of bytes, or of the images of Hugging Face (bytes and path), whose first media are of this modality."""
    from pyarrow import ArrowException, parquet, types

    file = path if path.is_file() else min(path.glob("*.parquet"))
    try:
        schema = parquet.read_schema(file)
    except (ArrowException, OSError):
        return []

    def holds_bytes(kind) -> bool:
        if types.is_struct(kind):
            return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    fitting = []
    for name in (entry.name for entry in schema if holds_bytes(entry.type)):
        config = ParquetConfig(path=str(path), captions="none", media_field=name)
        try:
            if measure(build_source(config, modality, Path.cwd()).read(0), modality):
                fitting.append(name)
        except (ConfigError, DataError):
            continue
    return fitting[:1]


def _look(data: MediaConfig, val: MediaConfig | None, modality: str, source: Source) -> Found:
    files, bad, probed = probe(source, modality)
    if val is not None:
        try:
            build_source(val, modality, Path.cwd())
        except (ConfigError, DataError):
            val = None
    lengths, share, words, fields = None, 0.0, 0, CAPTION_FIELDS[0]
    for tried in CAPTION_FIELDS:
        found = captions_of(replace(data, caption_fields=tried), modality)
        if found[1] > share:
            (lengths, share, words), fields = found, tried
        if share >= CAPTIONED_ENOUGH:
            break
    classes: list[str] = []
    if data.kind == "folder" or share < CAPTIONED_ENOUGH:  # of tables and tars they take a while, and captions win
        data, classes = with_classes(data, source, modality)
    return Found(
        data=data,
        val=val,
        records=len(source),
        classes=classes,
        captioned=share,
        caption_fields=fields,
        captions=lengths,
        words=words,
        files=files,
        bad=bad,
        probed=probed,
    )


def captions_of(data: MediaConfig, modality: str) -> tuple[CaptionLengths | None, float, int]:
    """(lengths, share of records with a caption, different words) of the records that are looked at."""
    try:
        source = build_source(replace(data, captions="given", caption_default=MISSING), modality, Path.cwd())
    except (ConfigError, DataError):
        return None, 0.0, 0
    texts: list[str] = []

    def takes(text: str) -> bool:
        texts.append(text)
        return text != MISSING

    # Words without a limit: what limit fits is to be found.
    lengths = caption_lengths(source, modality, 0, word_limit(None), CAPTIONED, takes)
    given = [text for text in texts if text != MISSING]
    missing = len(texts) - len(given)
    looked = lengths.looked if lengths else missing
    share = (looked - missing) / looked if looked else 0.0
    return lengths, share, len({word for text in given for word in split_words(text)})


def with_classes(data: MediaConfig, source: Source, modality: str) -> tuple[MediaConfig, list[str]]:
    """(the source with its classes, their names), where there are classes: several, and several records in each.

    Folders are classes where no file lies beside them.
    """
    if data.kind == "folder":
        labels = source.labels()
        return data, [] if Path(data.path).name in labels or not _are_classes(labels, len(source)) else labels
    for name in LABEL_FIELDS:
        labeled = replace(data, label_field=name)
        try:
            labels = build_source(labeled, modality, Path.cwd()).labels()
        except (ConfigError, DataError):
            continue
        if _are_classes(labels, len(source)):
            return labeled, labels
    return data, []


def _are_classes(labels: list[str], records: int) -> bool:
    return 2 <= len(labels) <= records / 2


def probe(source: Source, modality: str) -> tuple[Files, int, int]:
    """(what the media are like, files that cannot be opened, files looked at). Raises DataError where none can be."""
    order, measured, bad, first = Order(source, 0, modality), [], 0, None
    count = min(PROBED[modality], len(source))
    for position in range(count):
        try:
            measured.append(measure(source.read(order.at(position)[1]), modality))
        except DataError as error:
            bad, first = bad + 1, first or error
    if not measured:
        raise DataError(f"none of {count} files can be read; the first: {first}")
    columns = {name: [each[name] for each in measured] for name in measured[0]}
    middle = {name: float(np.median(values)) for name, values in columns.items()}
    short = {"shortest": float(np.quantile(columns["seconds"], 0.05))} if "seconds" in columns else {}
    whole = {name: round(middle[name]) for name in ("height", "width", "channels") if name in middle}
    return Files(**{**middle, **whole, **short}), bad, count


def measure(record: Record, modality: str) -> dict[str, float]:
    """Size, rate and length of one file. Raises DataError for one that is not of the modality."""
    if modality == "audio":
        info = probe_audio(record.readable(), record.origin, record.rate)
        return {"rate": info.rate, "seconds": info.samples / info.rate, "channels": info.channels}
    if modality == "video":
        index = index_video(record.readable(), record.origin, record.rate)
        (frame,) = read_frames(record.readable(), record.origin, index, np.array([0]))
        rate = (len(index.pts) - 1) / index.times[-1] if len(index.pts) > 1 else 1 / index.seconds
        return {"height": frame.shape[0], "width": frame.shape[1], "rate": float(rate), "seconds": index.seconds}
    media = record.readable()
    assert not isinstance(media, np.ndarray)  # sources of files give no arrays
    source = io.BytesIO(media) if isinstance(media, bytes) else media
    try:
        with Image.open(source) as image:  # its header alone
            return {"height": image.height, "width": image.width}
    except IMAGE_ERRORS as error:
        raise DataError(f"{record.origin}: {error}") from error


def held_out(found: Found, modality: str) -> float:
    """The share to hold out, 0 where there are too few records or one side would be empty."""
    if found.val is not None or found.records < FEWEST:
        return 0.0
    share = round(min(0.1, HELD_OUT / found.records), 6)
    for split in ("train", "test"):
        try:
            build_source(replace(found.data, split=split, holdout=share), modality, Path.cwd())
        except (ConfigError, DataError):
            return 0.0
    return share


def unread(folder: Path, most: int = 100_000) -> list[str]:
    """Suffixes of files that no modality reads, with their number, as one note."""
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {*SIDECARS, ".tar", ".parquet"}
    counts: Counter[str] = Counter()
    for number, path in enumerate(folder.rglob("*")):
        if number == most:
            break
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() not in known and path.is_file():
            counts[path.suffix.lower() or "without a suffix"] += 1
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(8))
    return [f"files that are no media here: {listed}"] if counts else []


def _holds_some(path: Path, modality: str) -> bool:
    """Whether there are loose files of the modality, which then could not be used."""
    return path.is_dir() and any(each.suffix.lower() in SUFFIXES[modality] for each in path.rglob("*"))
