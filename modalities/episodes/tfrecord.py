"""TFRecord files: records one after another, each with checksums of its length and of its bytes.

length (8 bytes, little endian), masked CRC32C of these 8, the record, masked CRC32C of the record (4 bytes each), as
TensorFlow's record_writer.h says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from core.errors import DataError
from core.optional import need

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
MASK = 0xA282EAD8
LARGEST = 1 << 31  # bytes of a record: the limit of a protobuf message


class DamagedRecord(DataError):
    """Its bytes do not fit their checksum; the next record can still be found."""


def crc32c() -> Callable[[bytes], int]:
    """Raises ConfigError where the package is missing."""
    return need("crc32c", "kind: rlds", "All other sources work").crc32c


def masked(crc: int) -> int:
    """As stored: turned right by 15 bits and shifted, so that checksums of checksums stay sound."""
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


def scan(path: Path) -> Iterator[tuple[int, bytes | DataError]]:
    """(offset, bytes) of every record, or what is wrong with it; nothing can be found after a damaged length."""
    with path.open("rb") as file:
        offset = 0
        while header := file.read(HEADER.size):
            try:
                data = _record(file, header, path, offset)
            except DataError as error:
                yield offset, error
                if not isinstance(error, DamagedRecord):
                    return
                offset = file.tell()
            else:
                yield offset, data
                offset += HEADER.size + len(data) + FOOTER.size


def read_record(path: Path, offset: int) -> bytes:
    """The record at an offset. Raises DataError where it is damaged or gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _record(file, file.read(HEADER.size), path, offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _record(file: BinaryIO, header: bytes, path: Path, offset: int) -> bytes:
    crc, where = crc32c(), f"{path} at byte {offset}"
    if len(header) < HEADER.size:
        raise DataError(f"{where}: cut short: {len(header)} bytes where a record begins")
    length, wanted = HEADER.unpack(header)
    if masked(crc(header[:8])) != wanted:
        raise DataError(f"{where}: damaged: the checksum of the record's length does not fit, so no record begins here")
    if length > LARGEST:
        raise DataError(f"{where}: a record of {length} bytes")
    data, footer = file.read(length), file.read(FOOTER.size)
    if len(data) < length or len(footer) < FOOTER.size:
        raise DataError(f"{where}: cut short: the record should have {length} bytes and has {len(data)}")
    if masked(crc(data)) != FOOTER.unpack(footer)[0]:
        raise DamagedRecord(f"{where}: damaged: the checksum of the record's {length} bytes does not fit")
    return data
