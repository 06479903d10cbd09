"""The files of a tar, by one pass over its headers."""

from __future__ import annotations

import posixpath
import tarfile
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from modalities.data.sources.account import Account

_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LINKS = 40  # from one to the next, as file systems count them


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def key_of(name: str) -> str:
    """The key of a sample: the path of a member up to the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def scan(path: Path) -> tuple[list[Member], str, Account]:
    """The files of a tar, in order, why it ends early ("" if it does not), and the links.

    A link is the file that it leads to, under its own name, or the files of a folder.

    Raises DataError for a file that is no uncompressed tar at all.
    """
    members: list[Member] = []
    links: dict[int, str] = {}  # place in `members` -> path inside the tar
    account = Account()
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression, which allows no random access
            damage = ""
            try:
                for info in tar:
                    name = info.name.removeprefix("./")
                    if info.issparse():  # its bytes do not lie in one piece
                        account.leave("sparse file|", name)
                    elif info.isfile():
                        members.append(Member(name, info.offset_data, info.size))
                    elif info.islnk() or info.issym():
                        folder = posixpath.dirname(name) if info.issym() else ""
                        links[len(members)] = posixpath.normpath(posixpath.join(folder, info.linkname))
                        members.append(Member(name, 0, 0))
                    # Or they all stay in memory. Not in the stubs, and `getmembers` would read the whole file.
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            except tarfile.TarError as error:
                damage = str(error)
            end = tar.offset
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {_compression(path) or f'not an uncompressed tar, or damaged: {error}'}") from error
    if links:
        members = _resolved(members, links, account)
    # tarfile takes a damaged or cut header after the first one for the end; a true end is a block of zeros.
    if damage or mark != bytes(tarfile.BLOCKSIZE):
        after = members[-1].name if members else "no file"
        damage = f"{path}: damaged or cut short at byte {min(end, size)}, after {after}: " + (
            damage or "neither a header nor an end mark is there"
        )
        members = [member for member in members if member.offset + member.size <= size]
    return members, damage, account


def _resolved(members: list[Member], links: dict[int, str], account: Account) -> list[Member]:
    """The members with files in place of links. Links to links are followed; those to nothing are left out."""
    files = {posixpath.normpath(member.name): member for place, member in enumerate(members) if place not in links}
    targets = {posixpath.normpath(members[place].name): target for place, target in links.items()}
    ordered = sorted(files)
    found: list[Member] = []
    for place, member in enumerate(members):
        if place not in links:
            found.append(member)
            continue
        target = links[place]
        for _ in range(_LINKS):
            if target not in targets:
                break
            target = targets[target]
        # The files of a folder stand side by side ("0" comes after "/").
        inside = ordered[bisect_left(ordered, f"{target}/") : bisect_left(ordered, f"{target}0")]
        if target in files:
            account.follow("file|")
            found.append(Member(member.name, files[target].offset, files[target].size))
        elif inside:
            account.follow("folder|")
            found += [
                Member(member.name + name.removeprefix(target), files[name].offset, files[name].size) for name in inside
            ]
        else:
            account.leave("broken link|", member.name)
    return found


def _compression(path: Path) -> str:
    """What is wrong with a compressed tar, "" for any other file."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(6)
        for mark, name in _COMPRESSIONS.items():
            if start.startswith(mark):
                return f"compressed with {name}, which allows no random access; decompress it once"
    return ""
