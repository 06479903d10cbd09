"""The configuration that `selfflow init` writes: from what a folder holds to commented YAML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TypeVar

from modalities.data.sources.parquet import ParquetConfig
from tools.init.folder_look import CAPTION_FIELDS, CAPTIONED_ENOUGH, Found, Look, held_out

Value = TypeVar("Value", int, float)

WORD_ROUND, MOST_WORDS = 8, 256
LARGE_VOCABULARY = 2000  # different words, from which on the table is larger
NAMES = {"image": "an image", "video": "a video", "audio": "an audio clip"}


@dataclass(frozen=True)
class Machine:
    """What fits the machine: these are small models on media themselves, without an autoencoder.

    Attributes:
        side: largest images and videos, pixels.
        frames: of a video.
        patch_frames: frames of a token of a video, whose channels must not be more than the trunk's width.
        rate, seconds: most of an audio clip.
        batch: modality -> samples.
        steps: least and most.
    """

    name: str
    trunk: str
    side: dict[str, int]
    frames: int
    patch_frames: int
    rate: int
    seconds: float
    batch: dict[str, int]
    steps: tuple[int, int]
    lr: str
    precision: str
    workers: int


def machine(gpu: bool, cores: int) -> Machine:
    if gpu:
        return Machine(
            "a GPU",
            "{size: tiny, width: 512, heads: 8, double_blocks: 4, single_blocks: 8}",
            {"image": 64, "video": 64},
            17,
            2,
            16000,
            2.0,
            {"image": 64, "video": 16, "audio": 32},
            (5_000, 100_000),
            "2.0e-4",
            "bf16",
            max(1, min(8, cores - 1)),
        )
    return Machine(
        f"{cores} CPU cores",
        "{size: tiny, width: 256, heads: 8, double_blocks: 2, single_blocks: 4, mlp_ratio: 2.0}",
        {"image": 32, "video": 32},
        9,
        1,
        8000,
        1.0,
        {"image": 24, "video": 6, "audio": 16},
        (500, 3_000),
        "5.0e-4",
        "fp32",
        1 if cores > 1 else 0,
    )


@dataclass(frozen=True)
class Condition:
    """kind: text, label or none; `captions` says for each modality how its records get theirs, in YAML."""

    kind: str
    captions: dict[str, str]
    why: str


def condition_of(look: Look) -> Condition:
    """Captions where there are some, else the names of folders, else nothing."""
    found = look.found
    if any(each.captioned >= CAPTIONED_ENOUGH for each in found.values()):
        return Condition("text", {name: _captions(name, each) for name, each in found.items()}, "captions lie beside")
    ignored = ""
    if some := [name for name, each in found.items() if each.captioned > 0]:
        ignored = f"; the few captions of {', '.join(some)} are not used"
    if all(each.classes for each in found.values()):
        why = f"there are classes{ignored}"
        return Condition("label", dict.fromkeys(found, "captions: none"), why)
    if any(each.classes for each in found.values()):
        why = f"some have classes and some have none: the names of folders are captions{ignored}"
        return Condition("text", {name: _captions(name, each) for name, each in found.items()}, why)
    return Condition("none", {}, f"neither captions nor classes{ignored}")


def _captions(modality: str, found: Found) -> str:
    if found.captioned >= CAPTIONED_ENOUGH:
        # A record without one would be set aside, and too many of these end a run.
        return "" if found.captioned == 1 else f"caption_default: {NAMES[modality]}"
    if found.classes:
        return "captions: label"
    return f"caption: {NAMES[modality]}"


def write_config(path: Path, look: Look, fit: Machine, source: Path) -> str:
    """The whole file, as YAML that runs as it is.

    Args:
        path: where it will lie, for the commands in its head.
        source: the folder that was looked at.
    """
    condition, streams = condition_of(look), []
    shares = {name: found.records**0.5 for name, found in look.found.items()}
    for name, found in look.found.items():
        share = shares[name] / sum(shares.values())
        streams += _stream(name, found, fit, condition, share if len(shares) > 1 else None)
    batches = {name: batch_size(name, found, fit) for name, found in look.found.items()}
    epoch = max(
        found.records / batches[name] * sum(shares.values()) / shares[name] for name, found in look.found.items()
    )
    least, most = fit.steps
    steps = int(min(max(100 * epoch, least), most) // 10 * 10)
    records = sum(found.records for found in look.found.values())
    lines = [
        f"# Written by `selfflow init {shown(str(source))}`, for {fit.name}: a small model on the media themselves.",
        "#",
        f"#   selfflow train {shown(str(path))} --dry-run              checks everything and says what it costs",
        f"#   selfflow train {shown(str(path))} run=runs/{shown(path.stem)}",
        "#",
        "# All settings: `selfflow train FILE --print-config`. Larger models and autoencoders: configs/README.md.",
        "method: self_flow",
        "seed: 0",
        "",
        "streams:",
        *streams,
        "",
        *_condition(condition, look),
        "",
        "trunk:",
        f"  mmdit: {fit.trunk}",
        "",
        "training:",
        f"  steps: {steps}                # about {steps / epoch:,.0f} times through the data; may be raised later",
        f"  save_every: {max(1, steps // 10)}",
        f"  workers: {fit.workers}                 # processes that read and decode",
        f"  precision: {fit.precision}",
        f"  data_limit: {max(100, records // 10)}            # records that cannot be used, after which the run stops",
        f"  optimizer: {{lr: {fit.lr}, warmup: {min(1000, steps // 20)}}}",
        f"  ema: {{decay: {1 - 10 / steps:.5g}}}       # averages over a tenth of the steps",
    ]
    return "\n".join(lines) + "\n"


def batch_size(modality: str, found: Found, fit: Machine) -> int:
    return max(1, min(fit.batch[modality], found.records))


def _stream(name: str, found: Found, fit: Machine, condition: Condition, share: float | None) -> list[str]:
    """The section of one modality."""
    held, data = held_out(found, name), found.data
    place = [f"kind: {data.kind}", f"path: {json.dumps(data.path, ensure_ascii=False)}"]
    if isinstance(data, ParquetConfig):
        place.append(f"media_field: {json.dumps(data.media_field)}")
    place += [f"label_field: {data.label_field}"] if data.label_field else []
    if condition.kind == "text" and found.captioned >= CAPTIONED_ENOUGH and found.caption_fields != CAPTION_FIELDS[0]:
        place.append(f"caption_fields: [{', '.join(found.caption_fields)}]")
    lines = [f"  {name}:                        # {describe(name, found)}"]
    if share is not None:
        lines.append(f"    weight: {share:.2f}                 # of the steps")
    lines += [f"    batch: {batch_size(name, found, fit)}", "    data:", *(f"      {line}" for line in place)]
    if condition.captions.get(name):
        reason = " # for those without one" if "caption_default" in condition.captions[name] else ""
        lines.append(f"      {condition.captions[name]}{reason}")
    if held:
        lines += [
            "      split: train              # a part is held out, by a hash of the names",
            f"      holdout: {held:g}",
        ]
        lines.append("    val: {split: test}      # for `selfflow evaluate`")
    elif found.val is not None:
        lines += ["    val:", f"      path: {json.dumps(found.val.path, ensure_ascii=False)}"]
    else:
        lines.append("    # val: {path: FOLDER}   # too few records to hold some out; name others to evaluate on")
    guidance = "" if condition.kind == "none" else ", cfg_scale: 3.0"
    media, times = {"image": _image, "video": _video, "audio": _audio}[name](found, fit)
    lines += [f"    {line}" for line in media]
    lines += [f"    timestep: {{kind: logit_normal{times}}}", f"    sampling: {{steps: 50{guidance}{times}}}"]
    return lines


def _known(value: Value | None) -> Value:
    """What every file of the modality has."""
    assert value is not None
    return value


def _side(found: Found, largest: int) -> int:
    """A multiple of 16 up to `largest` that does not enlarge the usual file, but 16 at least."""
    short = min(_known(found.files.height), _known(found.files.width))
    return max(16, min(largest, short // 16 * 16))


def _image(found: Found, fit: Machine) -> tuple[list[str], str]:
    side = _side(found, fit.side["image"])
    tokens = (side // 4) ** 2
    return [f"media: {{size: [{side}], patch: 4}}     # {tokens} tokens; crop: pad keeps what a square cuts off"], ""


def _video(found: Found, fit: Machine) -> tuple[list[str], str]:
    side, files = _side(found, fit.side["video"]), found.files
    rate, shortest = max(1.0, round(_known(files.rate), 3)), _known(files.shortest)
    # As slow as 8 frames a second where videos are long enough, faster for short ones, never faster than the files.
    fps = round(min(max(8.0, ceil(fit.frames / max(shortest, 0.01))), rate), 3)
    seconds = fit.frames / fps
    return [
        f"media:                      # videos of {seconds:.2g} s; files shorter than that repeat their last frame",
        f"  {{size: [{side}], frames: {fit.frames}, fps: {fps:g}, patch: 8, patch_frames: {fit.patch_frames}, "
        "short: repeat_last}",
    ], ", shift: 3.0"


def _audio(found: Found, fit: Machine) -> tuple[list[str], str]:
    files = found.files
    rate = int(min(fit.rate, _known(files.rate)))
    seconds = max(0.1, round(min(fit.seconds, _known(files.seconds)), 2))
    hop = max(1, rate // 100)
    return [
        f"media:                      # {ceil(round(seconds * rate) / hop) + 1} tokens; shorter files are padded with "
        "silence",
        f"  {{sample_rate: {rate}, seconds: {seconds:g}, hop: {hop}}}",
    ], ""


def _condition(condition: Condition, look: Look) -> list[str]:
    if condition.kind == "none":
        return [f"condition: {{kind: none}}       # {condition.why}; `selfflow generate` takes no prompt"]
    if condition.kind == "label":
        count = len({name for found in look.found.values() for name in found.classes})
        return [f"condition: {{kind: label}}      # {condition.why}, {count} of them: `selfflow generate --class NAME`"]
    words = max_words(look)
    vocabulary = 16384 if sum(found.words for found in look.found.values()) > LARGE_VOCABULARY else 4096
    lengths = [each.captions for each in look.found.values() if each.captions is not None]
    longest = max((int(each.lengths.max()) for each in lengths), default=words)
    cut = f"; longer ones (up to {longest}) lose their end" if longest > words else ""
    return [
        "condition:",
        f"  kind: text                  # {condition.why}",
        f"  text: {{max_words: {words}, vocabulary: {vocabulary}}}     # words of a caption that are read{cut}",
    ]


def max_words(look: Look) -> int:
    """All words of the longest caption, unless a few captions are far longer than the others."""
    lengths = [found.captions for found in look.found.values() if found.captions is not None]
    longest = max((int(each.lengths.max()) for each in lengths), default=1)
    usual = max((each.fitting(0.95) for each in lengths), default=1)
    wanted = longest if longest <= 2 * usual else usual
    classes = [name.split() for found in look.found.values() for name in found.classes]
    wanted = max([wanted, *map(len, classes)])
    return min(MOST_WORDS, ceil(wanted / WORD_ROUND) * WORD_ROUND)


def describe(modality: str, found: Found) -> str:
    """A modality in one line."""
    files = found.files
    name = NAMES[modality].split(" ", 1)[1]
    parts = [f"{found.records:,} {name}{'s' * (found.records != 1)}"]
    if modality != "audio":
        parts.append(f"{files.width} x {files.height}")
    if modality == "video":
        parts.append(f"{files.seconds:.3g} s at {files.rate:.4g} fps")
    if modality == "audio":
        parts.append(
            f"{files.seconds:.3g} s at {files.rate:,.0f} Hz, {files.channels} channel{'s' * (files.channels != 1)}"
        )
    return ", ".join(parts)


def shown(text: str) -> str:
    """A word of a command line, quoted where it must be."""
    return (
        text
        if all(letter.isalnum() or letter in "/._-+" for letter in text)
        else "'" + text.replace("'", "'\\''") + "'"
    )
