"""What the packets of a video say of its frames, without decoding them, and whether it can be believed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

# The clock of a broadcast that jumps by more than this many seconds was reset; nothing is on screen for so long.
JUMP = 10
X264 = re.compile(rb"x264 - core (\d+)")
VOP = b"\x00\x00\x01\xb6"  # start of an image of MPEG-4 part 2
SMALLEST_VOP = 16  # bytes; a smaller one says that nothing is shown


@dataclass(frozen=True)
class Packet:
    """
    Attributes:
        stamp: display time as the file states it, or None.
        duration: 0 where the file states none.
        key: decoding may begin here.
        hidden: not shown: by an edit list, or an image that only others refer to.
        cut: the file ends inside it.
    """

    stamp: int | None
    duration: int
    key: bool
    hidden: bool
    cut: bool = False


def read_packets(packets: Iterator, codec: str, reorders: bool) -> tuple[bytes, list[Packet]]:
    """The packets of a video in the order of the file, and the content of the first.

    Args:
        packets: of PyAV, from a container that was opened to infer nothing.
        reorders: frames of the codec may be stored in another order than they are shown in.
    """
    found: list[tuple[int | None, Packet]] = []  # with the time of decoding
    first, in_order = b"", not reorders
    for packet in packets:
        if not packet.size:  # the last one, and frames that were left out in recording
            continue
        first = first or bytes(packet)
        data = bytes(packet) if codec in ("mpeg4", "vp8") else b""
        if codec == "mpeg4":
            in_order = in_order and _in_order(data)
        unseen = codec == "vp8" and not data[0] & 0x10  # RFC 6386, 9.1: show_frame
        read = Packet(
            packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard or unseen, packet.is_corrupt
        )
        found.append((packet.dts, read))
    if in_order and any(packet.stamp is None for _, packet in found):  # then the time of decoding is that of display
        return first, [replace(packet, stamp=dts) for dts, packet in found]
    return first, [packet for _, packet in found]


def _in_order(data: bytes) -> bool:
    """A packet of MPEG-4 part 2 holds one image that is shown where it stands: no B-frames (ISO/IEC 14496-2)."""
    places = [match.end() for match in re.finditer(re.escape(VOP), data)]
    return len(places) == 1 and len(data) >= SMALLEST_VOP and data[places[0]] >> 6 != 2


def before_key(packets: Sequence[Packet]) -> set[int]:
    """The numbers of the packets before the first key frame, of a recording that begins anywhere."""
    return set(range(next((i for i, packet in enumerate(packets) if packet.key), 0)))


def leading(packets: Sequence[Packet], first: int) -> dict[int, int]:
    """Stamp -> number of the packets that follow the first key frame, at place `first`, and are shown before it.

    They can be decoded only where they need nothing that lies before the key frame.
    """
    found: dict[int, int] = {}
    stamp = packets[first].stamp if first < len(packets) else None
    for number, packet in enumerate(packets[first + 1 :], start=first + 1):
        if packet.key or stamp is None or packet.stamp is None:
            break
        if packet.stamp < stamp and not packet.hidden:
            found[packet.stamp] = number
    return found


def has_clock(packets: Sequence[Packet], unit: float, broadcast: bool) -> bool:
    """Whether every frame has a display time of its own, on one clock.

    Args:
        unit: seconds.
        broadcast: the container is one whose clock may be reset anywhere (MPEG-TS and -PS).
    """
    timed = [(packet.stamp, packet.key) for packet in packets if packet.stamp is not None]
    stamps = [stamp for stamp, _ in timed]
    if len(stamps) < len(packets) or len(set(stamps)) < len(stamps):
        return False
    keys = [stamp for stamp, key in timed if key]
    if any(later < earlier for earlier, later in pairwise(keys)):
        return False
    before = last = None  # key frames
    for stamp, key in timed:
        if key:
            before, last = last, stamp
        elif before is not None and stamp < before:
            return False
    ordered = sorted(stamps)
    return not broadcast or all((later - earlier) * unit <= JUMP for earlier, later in pairwise(ordered))


def closed(packets: Sequence[Packet]) -> bool:
    key = None
    for packet in packets:
        if packet.key:
            key = packet.stamp
        elif key is not None and packet.stamp is not None and packet.stamp < key:
            return False
    return True


def x264_build(data: bytes) -> int:
    """The version of x264 that wrote a stream, as its header or its first packet states it; else a very large one."""
    match = X264.search(data)
    return int(match[1]) if match else sys.maxsize
