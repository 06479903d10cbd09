"""What `selfflow inspect` shows of a folder that `selfflow encode` wrote."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from configs.assembly.latents import stored_adapter
from core.errors import ConfigError
from core.progress import ProgressBar
from modalities.base import StoredLatents
from modalities.latents.bad import lines
from modalities.latents.chunks import QUARANTINE, SETTINGS, read_quarantine
from modalities.latents.format import MANIFEST, Manifest, StoredPart, read_manifest
from modalities.latents.source import LatentsSource
from modalities.latents.verify import unfinished, verify
from modalities.sample_files import write_parts
from modalities.streams import make_parts


def encoded_folders(path: Path) -> list[Path]:
    """The folders of single streams at a path: itself, or those in it."""
    candidates = [path, *sorted(each for each in path.glob("*") if each.is_dir())]
    return [each for each in candidates if (each / MANIFEST).is_file() or (each / SETTINGS).is_file()]


def inspect_encoded(folders: list[Path], options: argparse.Namespace) -> int:
    """Print what the folders hold; 1 where --verify finds something wrong."""
    if options.decode is not None and (options.decode < 1 or options.out is None):
        raise ConfigError("--decode: takes the number of samples, 1 or more, and --out FOLDER for their files")
    wrong = 0
    for folder in folders:
        print("\n".join(describe(folder)))
        if not (folder / MANIFEST).is_file():
            continue
        if options.verify:
            problems = check(folder)
            wrong += len(problems)
            print(
                "\n".join(f"  WRONG {line}" for line in problems) or "verified  every shard and every sample is intact"
            )
        if options.decode is not None:
            for path in decode(folder, options.decode, options.out, options.autoencoder):
                print(f"  {path}")
    return 1 if wrong else 0


def describe(folder: Path) -> list[str]:
    """The manifest in words, or how far an unfinished folder has come."""
    if not (folder / MANIFEST).is_file():
        begun = unfinished(folder)
        assert begun is not None  # or it would not be taken for encoded data
        settings, chunks, count = begun
        samples, bad = sum(chunk.samples for chunk in chunks), [entry for chunk in chunks for entry in chunk.bad]
        return [
            f"encoding  {folder}: not finished: {len(chunks)} of {count} chunks, {samples:,} samples, {len(bad)} bad; "
            f"the same `selfflow encode` goes on with it (seed {settings['seed']}, {settings['dtype']})",
            *(f"  set aside {line}" for line in lines(bad)),
        ]
    found = read_manifest(folder)
    sizes = Counter(shard["samples"] for shard in found.shards)
    views = f", {found.views} views of each" if found.views > 1 else ""
    return [
        f"encoded   {folder}: stream {found.stream}",
        f"samples   {found.samples:,} of {found.records:,} records{views}; {len(found.labels)} classes",
        f"size      {found.bytes / 1e6:,.1f} MB in {len(found.shards)} shards of up to {max(sizes)} samples",
        *(line for name, part in found.parts.items() for line in part_lines(name, part, found.dtype)),
        f"text      {text_line(found)}",
        f"source    {found.source['kind']} {found.source['path']} (fingerprint {found.source['fingerprint']})",
        f"made      {found.date} {' '.join(f'{key} {value}' for key, value in found.code.items())}".rstrip(),
        f"bad data  {found.bad} records" + (f", listed in {folder / QUARANTINE}" if found.bad else ""),
        *(f"  set aside {line}" for line in lines(read_quarantine(folder))),
    ]


def part_lines(name: str, part: StoredPart, dtype: str) -> list[str]:
    autoencoder = part.autoencoder
    weights = f", {autoencoder['path']} (digest {autoencoder['digest']})" if autoencoder["digest"] else ""
    return [
        f"part      {name}: {part.modality}",
        f"latents   {' x '.join(map(str, part.grid))} tokens (t, h, w) of {part.channels} channels, {dtype}"
        + (", with deviations" if part.deviation else ""),
        f"of        {autoencoder['kind']}{weights}",
        f"media     {', '.join(f'{key} {value}' for key, value in part.media.items() if value is not None)}",
        "statistics "
        + ("measured over these samples" if part.normalization["measured"] else "published with the weights"),
    ]


def text_line(manifest: Manifest) -> str:
    if manifest.text is None:
        return "captions alone"
    text = manifest.text
    return f"captions, and features of {text.encoder['kind']} {text.path} ({text.width} channels, {text.dtype})"


def check(folder: Path) -> list[str]:
    total = read_manifest(folder).samples
    with ProgressBar(total=total, unit="sample", desc=f"{folder}", file=sys.stderr) as bar:
        return verify(folder, bar.update)


def decode(folder: Path, number: int, out: Path, weights: str | None) -> list[Path]:
    """Files of `number` samples, spread evenly over all, each with its captions beside it in a .txt.

    Args:
        weights: of the autoencoders, where they have moved, see `moved_weights`.

    Raises ConfigError where the autoencoder's weights are missing, CheckpointError where they are others.
    """
    manifest = read_manifest(folder)
    paths = moved_weights(weights, manifest)
    try:
        adapters = {name: stored_adapter(name, part, paths.get(name)) for name, part in manifest.parts.items()}
    except ConfigError as error:
        raise ConfigError([*error.problems, "Where the weights have moved, add --autoencoder PATH"]) from error
    parts, source, files = make_parts(adapters), LatentsSource(folder), []
    number = min(number, len(source))
    for turn in range(number):
        record = source.read(turn * len(source) // number)
        media = {}
        for name, part in parts.items():
            latents = record.part(name).media
            assert isinstance(latents, StoredLatents)  # of this source
            media[name] = part.adapter.decode(latents.mean[None])[0]
        name = f"{manifest.stream}-{turn:03}-{''.join(c if c.isalnum() else '_' for c in record.key)[-80:]}"
        files += write_parts(parts, media, out / name)
        (out / f"{name}.txt").write_text("".join(f"{caption}\n" for caption in record.captions), "utf-8", "replace")
    return files


def moved_weights(given: str | None, manifest: Manifest) -> dict[str, str]:
    """part -> path of its autoencoder's weights.

    Args:
        given: the path of the only part with weights, or `PART=PATH,PART=PATH`.

    Raises ConfigError for names that are no parts with weights.
    """
    if given is None:
        return {}
    there = [name for name, part in manifest.parts.items() if part.autoencoder["digest"]]
    pairs = [entry.partition("=") for entry in given.split(",")]
    if len(there) < 2 and not any(name in there for name, _, _ in pairs):
        return dict.fromkeys(there, given)
    found = {name: path for name, _, path in pairs}
    if wrong := sorted(set(found) - set(there)):
        named = ",".join(f"{name}=PATH" for name in there)
        raise ConfigError(f"--autoencoder: {', '.join(wrong)}: no part with weights; give {named}")
    return found
