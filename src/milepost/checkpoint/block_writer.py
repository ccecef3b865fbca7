"""How do all cores encode and write one file at once?

Each thread takes the next block, encodes it into an aligned buffer of its own and, when that is full, writes it at the
next free offset. Nothing is shared but that offset, so neither the lock of the interpreter nor that of the file is in
the way, and the disk works while the other threads encode.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import xxhash

from milepost.checkpoint.codec import BLOCK_BYTES, LANE_ALIGNMENT, BlockCodec, EncodedBlock, padded
from milepost.checkpoint.manifest import Block
from milepost.checkpoint.parallel import share_out
from milepost.checkpoint.regions import Source
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer

__all__ = ["BlockWriter"]

_BUFFER_BYTES = 8 << 20
_ROOM = BLOCK_BYTES + 8 * LANE_ALIGNMENT + ALIGNMENT


class BlockWriter:
    """Writes the blocks of regions into a new file.

    Args:
        file: The file.
        start: Where its blocks may begin, a multiple of the alignment.
        compression: Encode, or store raw at page boundaries.

    Attributes:
        end: Where the last block's page ends.
    """

    def __init__(self, file: NewFile, *, start: int, compression: bool) -> None:
        self.end = start
        self._file = file
        self._compression = compression
        self._lock = threading.Lock()

    def write(self, sources: list[Source], *, threads: int) -> None:
        """Encode and write all blocks, and fill in the sources' ``plan`` and ``blocks``.

        Raises:
            OSError: As the kernel gives it; the file is then to be abandoned.
        """
        if self._compression:
            share_out(sources, _plan, threads=threads)
        # large regions first: the threads then end together
        order = sorted(sources, key=lambda source: -source.nbytes)
        share_out([(s, i) for s in order for i in range(len(s.blocks))], self._write_shares, threads=threads)

    def reserve(self, length: int) -> int:
        """The next free offset, with ``length`` bytes behind it taken."""
        with self._lock:
            offset = self.end
            self.end += length
        return offset

    def _write_shares(self, shares: Iterator[tuple[Source, int]]) -> None:
        outbox = _Outbox(self._file, self)
        alignment = LANE_ALIGNMENT if self._compression else ALIGNMENT
        for source, index in shares:
            outbox.add(source, index, alignment)
        outbox.flush()


def _plan(shares: Iterator[Source]) -> None:
    codec = BlockCodec()
    for source in shares:
        if source.nbytes:
            source.plan = codec.plan(source.block(len(source.blocks) // 2), source.width)


class _Outbox:
    """Encoded blocks of one thread that are not yet in the file."""

    def __init__(self, file: NewFile, owner: BlockWriter) -> None:
        self._file = file
        self._owner = owner
        self._codec = BlockCodec()
        self._buffer = aligned_buffer(_BUFFER_BYTES)
        self._bytes = np.frombuffer(self._buffer, np.uint8)
        self._used = 0
        self._waiting: list[tuple[Source, int, int, EncodedBlock, int]] = []

    def add(self, source: Source, index: int, alignment: int) -> None:
        start = self._advance(padded(self._used, alignment))
        encoded = self._codec.encode(source.block(index), source.width, source.plan, self._bytes[start:])
        self._used = start + encoded.stored
        checksum = xxhash.xxh3_64_intdigest(self._bytes[start : self._used].data)
        self._waiting.append((source, index, start, encoded, checksum))
        if self._used + _ROOM > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is there; only then do its blocks count as stored."""
        if not self._waiting:
            return
        length = self._advance(padded(self._used, ALIGNMENT))
        offset = self._owner.reserve(length)
        self._file.write(self._buffer[:length], offset)
        for source, index, start, encoded, checksum in self._waiting:
            source.blocks[index] = Block(offset=offset + start, encoded=encoded, checksum=checksum)
        self._waiting.clear()
        self._used = 0

    def _advance(self, end: int) -> int:
        self._bytes[self._used : end] = 0  # an older block must not show through
        return end
