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
from milepost.checkpoint.regions import Layout, Source
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer

__all__ = ["BlockWriter"]

#: A tensor to hash, by index, or a block to encode: its region and its index.
_Share = int | tuple[Source, int]

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

    def write(self, layout: Layout, *, threads: int) -> list[int]:
        """Encode and write all blocks, and fill in those of the layout's sources.

        Returns:
            xxh3_128 of each tensor.

        Raises:
            OSError: As the kernel gives it; the file is then to be abandoned.
        """
        digests = [0] * len(layout.memory)

        def work(shares: Iterator[_Share]) -> None:
            outbox = _Outbox(self._file, self)
            for share in shares:
                if isinstance(share, int):
                    digests[share] = xxhash.xxh3_128_intdigest(layout.memory[share].data)
                else:
                    outbox.add(*share, compression=self._compression)
            outbox.flush()

        # one more thread than cores: whenever one waits for the disk, another has a core; but each fills its buffer
        useful = 1 + sum(source.nbytes for source in layout.sources) // _BUFFER_BYTES
        share_out(_shares(layout), work, threads=min(threads + 1, useful))
        return digests

    def reserve(self, length: int) -> int:
        """The next free offset, with ``length`` bytes behind it taken."""
        with self._lock:
            offset = self.end
            self.end += length
        return offset


def _shares(layout: Layout) -> list[_Share]:
    """The work in order: large regions first, so that the threads end together; each tensor hashed, then encoded."""
    tensors: dict[int, list[_Share]] = {}
    for index, (region, _) in enumerate(layout.places):
        tensors.setdefault(region, []).append(index)
    regions = sorted(enumerate(layout.sources), key=lambda item: -item[1].nbytes)
    return [
        share
        for region, source in regions
        for share in (*tensors[region], *((source, index) for index in range(len(source.blocks))))
    ]


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

    def add(self, source: Source, index: int, *, compression: bool) -> None:
        """Encode one block; write the buffer if no other would fit."""
        if compression:
            source.make_plan(self._codec)
        start = self._advance(padded(self._used, LANE_ALIGNMENT if compression else ALIGNMENT))
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
