"""How does one block come from the file into memory, or an error that says where it is damaged?"""

from __future__ import annotations

import numpy as np
import xxhash

from milepost.checkpoint.codec import BLOCK_BYTES, LANE_ALIGNMENT, RAW, BlockCodec, Bytes, DamagedBlockError
from milepost.checkpoint.manifest import Region
from milepost.core.errors import CorruptDataError
from milepost.io.direct import read_fully
from milepost.io.durable import storage_error

__all__ = ["BlockReader", "damaged"]

_LARGEST_STORED = BLOCK_BYTES + 8 * LANE_ALIGNMENT


class BlockReader:
    """Reads blocks with the buffers of one thread.

    Args:
        fd: The file.
        path: Its name in errors.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._codec = BlockCodec()
        self._stored = np.empty(_LARGEST_STORED, np.uint8)
        self._decoded = np.empty(BLOCK_BYTES, np.uint8)

    def read(self, region: Region, index: int, tensor: str) -> Bytes:
        """A decoded block, valid until the next call; ``tensor`` is named in errors.

        Raises:
            CorruptDataError: Its checksum is wrong, or it does not decode.
            StorageError: The disk refuses.
        """
        decoded = self._decoded[: region.block_bytes(index)]
        self.read_into(region, index, tensor, decoded)
        return decoded

    def read_into(self, region: Region, index: int, tensor: str, out: Bytes) -> None:
        """Decode a block into ``out``, which has its decoded length. Raises as :meth:`read` does."""
        block = region.blocks[index]
        raw = block.encoded.encoding == RAW
        stored = out if raw else self._stored[: block.encoded.stored]
        try:
            complete = read_fully(self._fd, stored.data, block.offset) == len(stored)
        except OSError as error:
            raise storage_error(
                error, f"reading the tensor {tensor!r} at offset {block.offset} of", self._path
            ) from error
        if not complete or xxhash.xxh3_64_intdigest(stored.data) != block.checksum:
            reason = "the checksum of its block is wrong" if complete else "the file ends inside of its block"
            raise damaged(self._path, tensor, block.offset, reason)
        if raw:
            return
        try:
            self._codec.decode(stored, block.encoded, region.width, out)
        except DamagedBlockError as error:
            raise damaged(self._path, tensor, block.offset, str(error)) from None


def damaged(path: str, tensor: str, offset: int, reason: str) -> CorruptDataError:
    """The error for a tensor whose bytes are not what was written."""
    what = f"{path}: the tensor {tensor!r} is damaged at offset {offset} ({reason})"
    return CorruptDataError(what, cure="load another checkpoint, for example with fallback=True")
