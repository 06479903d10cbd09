"""The media files of a folder and what lies beside them, by one walk that follows links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modalities.data.sources.account import Account
from modalities.data.sources.metadata import METADATA
from modalities.data.sources.names import composed, is_hidden, leave_hidden, other_suffix, suffix_of
from modalities.data.sources.sidecars import SIDECARS


@dataclass
class Scan:
    """What a walk has found. All names are paths below the folder.

    Attributes:
        names: media.
        bare: those without a sidecar that may hold a caption.
        suffixes: those of sidecars, as they are written, that stand beside media of exactly their name.
        named: media -> suffix of SIDECARS -> the sidecar, where the names are the same only in one Unicode form or the
            suffix is written in both cases.
        metadata: tables that name files, see metadata.py.
        account: what is left out, and the links.
    """

    names: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)
    named: dict[str, dict[str, str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def scan_folder(root: Path, modality: str, suffixes: tuple[str, ...]) -> Scan:
    """Walk a folder, then the folders that links in it lead to, under the names of the links.

    A link that leads upwards is not followed, and of those inside linked folders only what leads to folders not read
    yet, so that links in a circle end. Hidden files and folders, and those of a system, are left out.

    Args:
        suffixes: of the media, in lower case.
    """
    scan = Scan()
    above = {_identity(folder) for folder in root.resolve().parents}
    read: dict[str, tuple[int, int]] = {}  # folder -> its identity
    known: set[tuple[int, int]] = set()
    links, depth = [""], 0
    while links:
        starts, links = sorted(links), []
        for start in starts:
            try:
                identity = _identity(root / start) if start else None
                inside = {read[each] for each in _folders_above(start)} if depth == 1 else known
                if identity in above or identity in inside:
                    scan.account.leave("linked folder| read already or leading in a circle", start)
                    continue
            except OSError:
                scan.account.leave("folder| that cannot be opened", start)
                continue
            if start:
                scan.account.follow("folder|")
            stack = [start]
            while stack:
                folder = stack.pop()
                try:
                    read[folder] = _identity(root / folder)
                    known.add(read[folder])
                    entries = sorted(os.scandir(f"{root}/{folder}"), key=lambda entry: entry.name)
                except OSError:
                    scan.account.leave("folder| that cannot be opened", folder)
                    continue
                stack += _read(scan, folder, entries, links, modality, suffixes)
        depth += 1
    scan.names.sort()
    return scan


def _folders_above(link: str) -> Iterator[str]:
    """The folders in which a link lies, up to the root, as `scan_folder` names them."""
    while link:
        link = link.rstrip("/").rpartition("/")[0]
        link = f"{link}/" if link else ""
        yield link


def _identity(folder: Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _read(
    scan: Scan, folder: str, entries: list[os.DirEntry], links: list[str], modality: str, suffixes: tuple[str, ...]
) -> list[str]:
    """Note the files of one folder; its folders are returned, and links to folders put to `links`."""
    inner, media, beside = [], [], []
    for entry in entries:
        name = folder + entry.name
        try:
            link, is_folder, is_file = entry.is_symlink(), entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            link, is_folder, is_file = True, False, False
        if is_hidden(entry.name):
            leave_hidden(scan.account, name, is_folder)
        elif is_folder:
            (links if link else inner).append(f"{name}/")
        elif not is_file:
            scan.account.leave("broken link|" if link else "entry| that is no file", name)
        elif entry.name.lower().endswith(suffixes):
            media.append(entry.name)
            if link:
                scan.account.follow("file|")
        elif entry.name.lower() in METADATA:
            scan.metadata.append(name)
        elif suffix_of(entry.name) in SIDECARS:
            beside.append(entry.name)
        else:
            scan.account.leave(other_suffix(entry.name, modality), name)
    scan.names += [folder + name for name in media]
    _pair(scan, folder, media, beside, modality)
    return inner


def _pair(scan: Scan, folder: str, media: list[str], beside: list[str], modality: str) -> None:
    """Which sidecars of one folder belong to which media."""
    by_stem: dict[str, list[str]] = {}
    for name in media:
        by_stem.setdefault(composed(name[: name.rfind(".")]), []).append(name)
    there, captioned = set(beside), set()
    for name in beside:
        own, written = os.path.splitext(name)
        stem, suffix = composed(own), written.lower()
        takers = by_stem.get(stem)
        if takers is None:
            scan.account.leave(f"{suffix} (no {modality} of that name)", folder + name)
            continue
        if suffix != ".cls":
            captioned.add(stem)
        for taker in takers:
            same, usual = taker[: taker.rfind(".")], (suffix, suffix.upper())
            if own == same and written in usual:
                scan.suffixes.add(written)
            elif there.isdisjoint(same + each for each in usual):
                scan.named.setdefault(folder + taker, {}).setdefault(suffix, folder + name)
    scan.bare += [folder + name for stem, names in by_stem.items() if stem not in captioned for name in names]
