"""What do the bytes of a run log mean? The words of ``docs/format.md``, without any file or process.

**Invariants**: a record is believed only after its hash holds; a length alone is never trusted. A zero length word is
the end of what was written, because the memory starts zero-filled and no record is empty.

**On crash**: a record is either whole or absent, since its length word is stored last. Damaged bytes cost the records
they lie in: the walk goes on at the next valid one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

__all__ = [
    "Header",
    "find_record",
    "new_log_id",
    "pack_header",
    "read_header",
    "salt_of",
    "seal_record",
    "walk",
]

MAGIC = b"\x93MPLOG\r\n"  # neither text nor UTF-8, and a newline conversion breaks it visibly
FORMAT = 0
HEADER_BYTES = 64
#: Payload bytes of any record, and of one in a hot segment, whose end keeps this much room free.
LARGEST_PAYLOAD = 1 << 24
LARGEST_HOT_PAYLOAD = 1 << 16

_HEADER = struct.Struct("<8sIHBx16sQqq")
_HASH = struct.Struct("<Q")
_RECORD = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 64 bytes of a segment and of a durable log file.

    Attributes:
        log_id: Random 16 bytes of the log.
        base: Sequence number of the header's first byte; 0 while the segment was not used.
        wall_ns: Wall time when it was made, nanoseconds since 1970.
        monotonic_ns: The monotonic clock at the same moment.
        segment_size: Bytes, a power of two; a segment begins wherever the sequence number is a multiple of it.
    """

    log_id: bytes
    base: int
    wall_ns: int
    monotonic_ns: int
    segment_size: int


def pack_header(header: Header) -> bytes:
    """The 64 bytes of ``header``. The hash leaves ``base`` out: the writer stores it later, in one word."""
    bits = header.segment_size.bit_length() - 1
    packed = _HEADER.pack(
        MAGIC, FORMAT, HEADER_BYTES, bits, header.log_id, header.base, header.wall_ns, header.monotonic_ns
    )
    return packed + _HASH.pack(_header_hash(packed))


def read_header(data: bytes | memoryview) -> Header | None:
    """The header at the start of ``data``, or None if there is no sound one of this format."""
    if len(data) < HEADER_BYTES:
        return None
    packed = bytes(data[: _HEADER.size])
    magic, version, length, bits, log_id, base, wall_ns, monotonic_ns = _HEADER.unpack(packed)
    (stored,) = _HASH.unpack(data[_HEADER.size : HEADER_BYTES])
    if magic != MAGIC or version != FORMAT or length != HEADER_BYTES or stored != _header_hash(packed):
        return None
    if not 12 <= bits < 63 or not salt_of(log_id):
        return None
    return Header(log_id=log_id, base=base, wall_ns=wall_ns, monotonic_ns=monotonic_ns, segment_size=1 << bits)


def _header_hash(packed: bytes) -> int:
    return xxh3_64_intdigest(packed[:32] + packed[40:])


def new_log_id() -> bytes:
    """A random id whose salt is not zero."""
    while True:
        log_id = os.urandom(16)
        if salt_of(log_id):
            return log_id


def salt_of(log_id: bytes) -> int:
    """The seed that ties a record's hash to its log: stale bytes of another log in reused disk blocks never match."""
    return int.from_bytes(log_id[:8], "little")


def seal_record(payload: bytes, salt: int) -> bytes:
    """The whole record of ``payload``: length, hash, payload, zeros up to a multiple of 8 bytes."""
    length = len(payload)
    return _RECORD.pack(length, xxh3_64_intdigest(payload, salt ^ length)) + payload + bytes(-length % 8)


def walk(buffer: memoryview, start: int, end: int, base: int, salt: int) -> Iterator[tuple[int, memoryview]]:
    """Valid records that follow each other from ``start``, up to the first zero, foreign or cut-off one.

    Args:
        buffer: Bytes.
        start: Position in it, a multiple of 8.
        end: Position in it; nothing beyond is looked at.
        base: Sequence number of the buffer's first byte.
        salt: Of the log.

    Yields:
        Sequence number and payload. The next record begins at ``(sequence + 16 + len(payload) + 7) & -8``.
    """
    words = buffer[: end & -8].cast("Q")
    position = start
    last = end - 16
    while position <= last:
        length = words[position >> 3]
        stop = position + 16 + length
        if not length or length > LARGEST_PAYLOAD or stop > end:
            return
        payload = buffer[position + 16 : stop]
        if xxh3_64_intdigest(payload, salt ^ length) != words[(position >> 3) + 1]:
            return
        yield base + position, payload
        position = (stop + 7) & -8


def find_record(buffer: memoryview, available: int, salt: int) -> tuple[int | None, int | None]:
    """Look for a valid record after damage.

    Args:
        buffer: Bytes to search, from a multiple of 8 on.
        available: How many bytes there are from the buffer's start, inside it and beyond.
        salt: Of the log.

    Returns:
        Position of the first valid record, or None; and position of the first possible one before it that is not
        wholly in the buffer, or None.
    """
    end = len(buffer)
    words = buffer[: end & -8].cast("Q")
    unclear: int | None = None
    for index in range(len(words) - 2):
        length = words[index]
        # A payload is an array of 5 to 15 items: its first byte rules out almost all that is not the start of one.
        if not 0 < length <= LARGEST_PAYLOAD or not 0x95 <= buffer[(index << 3) + 16] <= 0x9F:
            continue
        position = index << 3
        stop = position + 16 + length
        if end < stop <= available:
            unclear = position if unclear is None else unclear
        elif stop <= end and xxh3_64_intdigest(buffer[position + 16 : stop], salt ^ length) == words[index + 1]:
            return position, unclear
    return None, unclear
