"""How do all cores encode and write one file at once?

Each thread takes the next block, encodes it into an aligned buffer of its own and, when that is full, writes it at the
next free offset. Nothing is shared but that offset, so neither the lock of the interpreter nor that of the file is in
the way, and the disk works while the other threads encode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from milepost.checkpoint.base import BaseRegions
from milepost.checkpoint.codec import BLOCK_BYTES, LANE_ALIGNMENT, RAW, SAME, BlockCodec, Bytes, EncodedBlock, padded
from milepost.checkpoint.manifest import Block
from milepost.checkpoint.parallel import share_out
from milepost.checkpoint.regions import Layout, Source
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer

__all__ = ["BlockWriter"]

_BUFFER_BYTES = 8 << 20
_ROOM = BLOCK_BYTES + 8 * LANE_ALIGNMENT + ALIGNMENT
_NOTHING = Block(offset=0, encoded=EncodedBlock(encoding=SAME, lanes=()), checksum=xxhash.xxh3_64_intdigest(b""))


class BlockWriter:
    """Writes the blocks of regions into a new file.

    Args:
        file: The file.
        start: Where its blocks may begin, a multiple of the alignment.
        base: Gives the blocks that differences are taken to; None if no region has a base.
        hurry: Whether blocks from here on are stored raw, because there is little time left.

    Attributes:
        end: Where the last block's page ends.
    """

    def __init__(self, file: NewFile, *, start: int, base: BaseRegions | None, hurry: Callable[[], bool]) -> None:
        self.end = start
        self.base = base
        self.hurry = hurry
        self._file = file
        self._lock = threading.Lock()

    def write(self, layout: Layout, *, threads: int, first: Callable[[int], None] | None = None) -> None:
        """Encode and write all blocks, and fill in those of the layout's sources.

        Args:
            layout: What to write.
            threads: How many encode.
            first: Told each region before its blocks, in one of the threads.

        Raises:
            CorruptDataError: The base is damaged.
            OSError: As the kernel gives it. After any error the file is to be abandoned.
        """

        def work(shares: Iterator[tuple[int, int]]) -> None:
            outbox = _Outbox(self._file, self)
            for region, index in shares:
                if index >= 0:
                    outbox.add(layout.sources[region], index)
                elif first is not None:
                    first(region)
            outbox.flush()

        # large regions first, so that the threads end together
        order = sorted(range(len(layout.sources)), key=lambda region: -layout.sources[region].nbytes)
        start = 0 if first is None else -1
        shares = [(region, index) for region in order for index in range(start, len(layout.sources[region].blocks))]
        # one more thread than cores: whenever one waits for the disk, another has a core; but each fills its buffer
        useful = 1 + sum(source.nbytes for source in layout.sources) // _BUFFER_BYTES
        share_out(shares, work, threads=min(threads + 1, useful))

    def reserve(self, length: int) -> int:
        """The next free offset, with ``length`` bytes behind it taken."""
        with self._lock:
            offset = self.end
            self.end += length
        return offset


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

    def add(self, source: Source, index: int) -> None:
        """Encode one block; write the buffer if no other would fit."""
        if source.same:
            source.blocks[index] = _NOTHING
        elif source.plan is None and _is_aligned(data := source.block(index)):
            self._write_in_place(source, index, data)
        else:
            self._encode(source, index)
        source.done()
        if self._used + _ROOM > _BUFFER_BYTES:
            self.flush()

    def _write_in_place(self, source: Source, index: int, data: Bytes) -> None:
        """Write a raw block out of the snapshot itself: one copy less."""
        offset = self._owner.reserve(len(data))
        checksum = xxhash.xxh3_64_intdigest(data.data)
        self._file.write(data.data, offset)
        encoded = EncodedBlock(encoding=RAW, lanes=(len(data),))
        source.blocks[index] = Block(offset=offset, encoded=encoded, checksum=checksum)

    def _encode(self, source: Source, index: int) -> None:
        start = self._advance(padded(self._used, ALIGNMENT if source.plan is None else LANE_ALIGNMENT))
        data, out = source.block(index), self._bytes[start:]
        encoded = self._encoded(source, index, data, out)
        if encoded.encoding == SAME:
            source.blocks[index] = _NOTHING
            return
        self._used = start + encoded.stored
        checksum = xxhash.xxh3_64_intdigest(self._bytes[start : self._used].data)
        self._waiting.append((source, index, start, encoded, checksum))

    def _encoded(self, source: Source, index: int, data: Bytes, out: Bytes) -> EncodedBlock:
        plan, width = source.plan, source.width
        if plan is None or self._owner.hurry():
            return self._codec.encode(data, width, RAW, out)
        if source.base is None or self._owner.base is None:
            return self._codec.encode(data, width, plan.alone, out)
        base = self._owner.base.block(source.base, index)
        scale = source.scale_to(data, base) if plan.beside[:1] == "s" else 0
        way = plan.alone if scale is None else plan.beside
        return self._codec.encode(data, width, way, out, base=base, scale=scale or 0)

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


def _is_aligned(data: Bytes) -> bool:
    return len(data) % ALIGNMENT == 0 and data.ctypes.data % ALIGNMENT == 0
