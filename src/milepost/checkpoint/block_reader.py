"""How does one block come from the file into memory, or an error that says where it is damaged?

A block is taken from the first file that has it whole: the checkpoint, then its copies. Nothing is written back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from milepost.checkpoint.codec import (
    BLOCK_BYTES,
    DIFFERENCES,
    LANE_ALIGNMENT,
    RAW,
    SAME,
    BlockCodec,
    Bytes,
    DamagedBlockError,
)
from milepost.checkpoint.differences import undo_differences
from milepost.checkpoint.manifest import Block, Region
from milepost.core.errors import CorruptDataError, StorageError
from milepost.io.direct import read_fully
from milepost.io.durable import storage_error

__all__ = ["BaseBlocks", "BlockFile", "BlockReader", "damaged"]

_LARGEST_STORED = BLOCK_BYTES + 8 * LANE_ALIGNMENT


@dataclass(frozen=True, slots=True)
class BlockFile:
    """An open file that holds blocks at the manifest's offsets, and its name in errors."""

    fd: int
    path: Path


class BaseBlocks(Protocol):
    """Where the blocks are that others are differences to."""

    def block(self, region: int, index: int) -> Bytes:
        """One decoded block, valid until this thread's next call."""


class BlockReader:
    """Reads blocks with the buffers of one thread.

    Args:
        files: Where to look for a block, in this order; at least one.
        base: Gives the blocks that differences refer to; asked only when a block is one.
        note: Told in one sentence of each block that was damaged in one file and sound in a later one.
    """

    def __init__(
        self, files: Sequence[BlockFile], *, base: Callable[[], BaseBlocks], note: Callable[[str], None]
    ) -> None:
        self._files = files
        self._base = base
        self._note = note
        self._codec = BlockCodec()
        self._stored = np.empty(_LARGEST_STORED, np.uint8)
        self._decoded = np.empty(BLOCK_BYTES, np.uint8)

    def read(self, region: Region, index: int, tensor: str) -> Bytes:
        """A decoded block, valid until the next call; ``tensor`` is named in errors.

        Raises:
            CorruptDataError: Its checksum is wrong, or it does not decode, here or in the base.
            NotFoundError: It is a difference to a base that is not there.
            StorageError: The disk refuses.
        """
        decoded = self._decoded[: region.block_bytes(index)]
        self.read_into(region, index, tensor, decoded)
        return decoded

    def read_into(self, region: Region, index: int, tensor: str, out: Bytes) -> None:
        """Decode a block into ``out``, which has its decoded length. Raises as :meth:`read` does."""
        block = region.blocks[index]
        if block.encoded.encoding == RAW:
            self._fetch(block, tensor, out)
            return
        stored = self._stored[: block.encoded.stored]
        self._fetch(block, tensor, stored)
        try:
            if block.encoded.encoding != SAME:
                self._codec.decode(stored, block.encoded, region.width, out)
        except DamagedBlockError as error:
            raise damaged(self._files[0].path, tensor, block.offset, str(error)) from None
        kind = block.encoded.encoding[:1]
        if region.base is not None and kind in DIFFERENCES:
            base = self._base_block(region.base.region, index, tensor)
            undo_differences(kind, out, base, width=region.width, scale=region.base.scale)

    def check(self, region: Region, index: int, tensor: str) -> None:
        """Read a block's stored bytes only to see that their checksum holds. Raises as :meth:`read` does."""
        block = region.blocks[index]
        self._fetch(block, tensor, self._stored[: block.encoded.stored])

    def _base_block(self, region: int, index: int, tensor: str) -> Bytes:
        try:
            return self._base().block(region, index)
        except CorruptDataError as error:
            what = (
                f"{self._files[0].path}: the tensor {tensor!r} is stored as differences to its base, but {error.what}"
            )
            raise CorruptDataError(what, cure=error.cure, kind=error.kind) from None

    def _fetch(self, block: Block, tensor: str, stored: Bytes) -> None:
        """Fill ``stored`` with the block's bytes from the first file whose checksum holds."""
        first: CorruptDataError | StorageError | None = None
        for file in self._files:
            problem = _problem(file, block, tensor, stored)
            if problem is None:
                if first is not None:
                    self._note(f"{first.what}; it was read from {file.path}")
                return
            first = first or problem
        if first is not None:
            raise first


def _problem(file: BlockFile, block: Block, tensor: str, stored: Bytes) -> CorruptDataError | StorageError | None:
    """Read a block's bytes from one file; what is wrong with them, if anything is."""
    try:
        complete = read_fully(file.fd, stored.data, block.offset) == len(stored)
    except OSError as error:
        problem = storage_error(error, f"reading the tensor {tensor!r} at offset {block.offset} of", file.path)
        problem.__cause__ = error
        return problem
    if not complete:
        return damaged(file.path, tensor, block.offset, "the file ends inside of its block")
    if xxhash.xxh3_64_intdigest(stored.data) != block.checksum:
        return damaged(file.path, tensor, block.offset, "the checksum of its block is wrong")
    return None


def damaged(path: Path, tensor: str, offset: int, reason: str) -> CorruptDataError:
    """The error for a tensor whose bytes are not what was written."""
    what = f"{path}: the tensor {tensor!r} is damaged at offset {offset} ({reason})"
    return CorruptDataError(what, cure="load another checkpoint, for example with fallback=True")
