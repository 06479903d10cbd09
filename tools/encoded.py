"""What `selfflow inspect` shows of a folder that `selfflow encode` wrote."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from configs.latents import stored_adapter
from core.errors import ConfigError
from modalities.data.latents import LatentsSource
from modalities.data.stored import MANIFEST, Manifest, read_manifest
from modalities.encoding.bad import lines
from modalities.encoding.parts import QUARANTINE, SETTINGS, read_quarantine
from modalities.encoding.verify import unfinished, verify


def encoded_folders(path: Path) -> list[Path]:
    """The folders of single modalities at a path: itself, or those in it."""
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
        settings, parts, count = unfinished(folder)
        samples, bad = sum(part.samples for part in parts), [entry for part in parts for entry in part.bad]
        return [
            f"encoding  {folder}: not finished: {len(parts)} of {count} parts, {samples:,} samples, {len(bad)} bad; "
            f"the same `selfflow encode` goes on with it (seed {settings['seed']}, {settings['dtype']})",
            *(f"  set aside {line}" for line in lines(bad)),
        ]
    found = read_manifest(folder)
    autoencoder, sizes = found.autoencoder, Counter(shard["samples"] for shard in found.shards)
    weights = f", {autoencoder['path']} (digest {autoencoder['digest']})" if autoencoder["digest"] else ""
    views = f", {found.views} views of each" if found.views > 1 else ""
    return [
        f"encoded   {folder}: {found.modality}",
        f"samples   {found.samples:,} of {found.records:,} records{views}; {len(found.labels)} classes",
        f"size      {found.bytes / 1e6:,.1f} MB in {len(found.shards)} shards of up to {max(sizes)} samples",
        f"latents   {' x '.join(map(str, found.grid))} tokens (t, h, w) of {found.channels} channels, {found.dtype}"
        + (", with deviations" if found.deviation else ""),
        f"of        {autoencoder['kind']}{weights}",
        f"media     {', '.join(f'{key} {value}' for key, value in found.media.items() if value is not None)}",
        f"text      {text_line(found)}",
        f"whitening {'measured over these samples' if found.whitening['measured'] else 'published with the weights'}",
        f"source    {found.source['kind']} {found.source['path']} (fingerprint {found.source['fingerprint']})",
        f"made      {found.date} {' '.join(f'{key} {value}' for key, value in found.code.items())}".rstrip(),
        f"bad data  {found.bad} records" + (f", listed in {folder / QUARANTINE}" if found.bad else ""),
        *(f"  set aside {line}" for line in lines(read_quarantine(folder))),
    ]


def text_line(manifest: Manifest) -> str:
    if manifest.text is None:
        return "captions alone"
    text = manifest.text
    return f"captions, and features of {text.encoder['kind']} {text.path} ({text.width} channels, {text.dtype})"


def check(folder: Path) -> list[str]:
    total = read_manifest(folder).samples
    with tqdm(total=total, unit="sample", desc=f"{folder}", dynamic_ncols=True, file=sys.stderr) as bar:
        return verify(folder, bar.update)


def decode(folder: Path, number: int, out: Path, weights: str | None) -> list[Path]:
    """Files of `number` samples, spread evenly over all, each with its captions beside it in a .txt.

    Raises ConfigError where the autoencoder's weights are missing, CheckpointError where they are others.
    """
    manifest = read_manifest(folder)
    try:
        adapter = stored_adapter(manifest, weights)
    except ConfigError as error:
        raise ConfigError([*error.problems, "Where the weights have moved, add --autoencoder PATH"]) from error
    source, files = LatentsSource(folder, manifest.modality), []
    number = min(number, len(source))
    for turn in range(number):
        record = source.read(turn * len(source) // number)
        media = adapter.decode(record.media.mean[None])[0]
        name = f"{manifest.modality}-{turn:03}-{''.join(c if c.isalnum() else '_' for c in record.key)[-80:]}"
        files.append(adapter.write(media, out / name))
        (out / f"{name}.txt").write_text("".join(f"{caption}\n" for caption in record.captions), "utf-8", "replace")
    return files
