"""How do many tensors come out of a file at once, by all cores, straight into memory that the caller owns?

A region is the piece of work: one thread decodes its blocks in order and hashes each tensor's part while it is in the
core's cache. A region that is too large a piece for that is cut into blocks, and its tensors are hashed at the end.

**Invariant**: memory is declared filled only after the checksums of its blocks and the digest of its tensor were found
right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from milepost.checkpoint.block_reader import BlockReader, damaged
from milepost.checkpoint.block_source import BlockSource
from milepost.checkpoint.codec import BLOCK_BYTES, Bytes
from milepost.checkpoint.manifest import Region, StoredTensor
from milepost.checkpoint.parallel import share_out

__all__ = ["TensorReader"]

#: Into how many pieces for each thread the work is cut at least, so that the threads end together.
_PIECES = 16


@dataclass(frozen=True, slots=True)
class _Part:
    """What one tensor takes from one block: its bytes from ``start`` on, into ``out``."""

    tensor: StoredTensor
    start: int
    out: Bytes


@dataclass(slots=True)
class _Wanted:
    """What is wanted of one region: the parts of its blocks, in order, and the tensors with their memory."""

    index: int
    blocks: dict[int, list[_Part]] = field(default_factory=dict)
    tensors: list[tuple[StoredTensor, Bytes]] = field(default_factory=list)
    hashed: bool = True

    def add(self, tensor: StoredTensor, out: Bytes) -> None:
        self.tensors.append((tensor, out))
        for index, part in _parts_of(tensor, 0, out):
            self.blocks.setdefault(index, []).append(part)

    def cut(self) -> Iterator[_Wanted]:
        """One piece for each block; the tensors are then hashed by whoever asked for them."""
        return (_Wanted(self.index, {index: parts}, hashed=False) for index, parts in self.blocks.items())


class TensorReader:
    """Reads tensors of one open file.

    Args:
        source: Where its blocks come from.
    """

    def __init__(self, source: BlockSource) -> None:
        self._source = source
        self._regions = source.manifest.regions
        self._idle: list[BlockReader] = []

    def fill(self, targets: Sequence[tuple[StoredTensor, Bytes]], *, threads: int) -> None:
        """Decode each tensor into its memory, which has its length. A block that several share is decoded once.

        Raises:
            CorruptDataError: Something is damaged; the message names file, tensor and offset.
            StorageError: The disk refuses.
        """
        wanted: dict[int, _Wanted] = {}
        for tensor, out in targets:
            wanted.setdefault(tensor.region, _Wanted(tensor.region)).add(tensor, out)
        regions = sorted(wanted.values(), key=self._place)
        largest = max(BLOCK_BYTES, sum(len(out) for _, out in targets) // (_PIECES * threads))
        cut = [len(region.blocks) * BLOCK_BYTES > largest for region in regions]
        pieces: list[_Wanted] = []
        for region, in_blocks in zip(regions, cut, strict=True):
            pieces += region.cut() if in_blocks else (region,)
        share_out(pieces, self._fill_pieces, threads=threads)
        left = [
            tensor for region, in_blocks in zip(regions, cut, strict=True) if in_blocks for tensor in region.tensors
        ]
        share_out(left, self._check_whole, threads=threads)

    def fill_part(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        """Decode bytes of a tensor from ``start`` on; only the checksums of their blocks tell that they are right."""
        reader = self._take()
        for index, part in _parts_of(tensor, start, out):
            self._fill_block(reader, self._regions[tensor.region], index, [part])
        self._idle.append(reader)

    def verify(self, tensors: Sequence[StoredTensor], *, threads: int) -> None:
        """Decode all regions of ``tensors``, in constant memory. Raises as :meth:`fill` does."""
        windows: dict[int, list[StoredTensor]] = {}
        for tensor in tensors:
            windows.setdefault(tensor.region, []).append(tensor)

        def verify_shares(shares: Iterator[tuple[int, list[StoredTensor]]]) -> None:
            reader = self._take()
            for region, inside in shares:
                self._verify_region(reader, self._regions[region], inside)
            self._idle.append(reader)

        share_out(list(windows.items()), verify_shares, threads=threads)

    def check_digest(self, tensor: StoredTensor, digest: int) -> None:
        """Refuse decoded bytes of another digest than the tensor's."""
        if digest != tensor.digest:
            blocks = self._regions[tensor.region].blocks
            offset = blocks[tensor.offset // BLOCK_BYTES].offset if tensor.nbytes else 0
            raise damaged(self._source.path, tensor.name, offset, "its digest is wrong")

    def _take(self) -> BlockReader:
        """A reader for one thread. Its buffers cost more to make than a small tensor takes to read."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._source.reader()

    def _place(self, wanted: _Wanted) -> int:
        """Where its first block lies, so that the disk is read in order."""
        return min((self._regions[wanted.index].blocks[index].offset for index in wanted.blocks), default=0)

    def _fill_pieces(self, pieces: Iterator[_Wanted]) -> None:
        reader = self._take()
        for piece in pieces:
            region = self._regions[piece.index]
            hashers = [xxhash.xxh3_128() for _ in piece.tensors]
            of_name = {tensor.name: hasher for (tensor, _), hasher in zip(piece.tensors, hashers, strict=True)}
            for index, parts in piece.blocks.items():
                self._fill_block(reader, region, index, parts)
                if piece.hashed:
                    for part in parts:
                        of_name[part.tensor.name].update(part.out.data)
            for (tensor, _), hasher in zip(piece.tensors, hashers, strict=True):
                self.check_digest(tensor, hasher.intdigest())
        self._idle.append(reader)

    def _fill_block(self, reader: BlockReader, region: Region, index: int, parts: list[_Part]) -> None:
        first = parts[0]
        if len(parts) == 1 and len(first.out) == region.block_bytes(index):
            reader.read_into(region, index, first.tensor.name, first.out)
            return
        content = reader.read(region, index, first.tensor.name)
        for part in parts:
            np.copyto(part.out, content[part.start : part.start + len(part.out)])

    def _check_whole(self, tensors: Iterator[tuple[StoredTensor, Bytes]]) -> None:
        for tensor, out in tensors:
            self.check_digest(tensor, xxhash.xxh3_128_intdigest(out.data))

    def _verify_region(self, reader: BlockReader, region: Region, tensors: list[StoredTensor]) -> None:
        hashers = [xxhash.xxh3_128() for _ in tensors]
        for block in range(len(region.blocks)):
            start = block * BLOCK_BYTES
            owner = next((t.name for t in tensors if t.offset + t.nbytes > start), tensors[0].name)
            content = reader.read(region, block, owner)
            for tensor, hasher in zip(tensors, hashers, strict=True):
                first, last = max(tensor.offset - start, 0), tensor.offset + tensor.nbytes - start
                if last > first:
                    hasher.update(content[first:last].data)
        for tensor, hasher in zip(tensors, hashers, strict=True):
            self.check_digest(tensor, hasher.intdigest())


def _parts_of(tensor: StoredTensor, start: int, out: Bytes) -> Iterator[tuple[int, _Part]]:
    """How the bytes of a tensor from ``start`` on, as many as ``out`` has, lie in the blocks of its region."""
    done = 0
    while done < len(out):
        index, inside = divmod(tensor.offset + start + done, BLOCK_BYTES)
        length = min(BLOCK_BYTES - inside, len(out) - done)
        yield index, _Part(tensor, inside, out[done : done + length])
        done += length
