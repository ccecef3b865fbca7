"""Which tensors of a snapshot are stored together, and which alone?

A *region* is a stretch of bytes that is cut into blocks. A large tensor is a region; small tensors of one dtype share a
region of at most one block, because a block of its own would cost each of them more than its content; tensors that
share memory (tied weights, views) are windows of one region, so that the memory is stored once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from milepost.checkpoint.codec import BLOCK_BYTES, RAW, BlockCodec, Bytes
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.manifest import Block, block_count, span_of
from milepost.core.errors import InvalidInputError

__all__ = ["Layout", "Source", "lay_out", "state_bytes"]

_SMALL = 64 << 10


@dataclass(slots=True, kw_only=True)
class Source:
    """A region on its way into the file.

    Attributes:
        width: Bytes of the numbers by which the codec splits it.
        pieces: The memory it is made of, in order.
        nbytes: Its length.
        plan: How the codec stores its planes.
        blocks: What was stored, by index; None until then.
    """

    width: int
    pieces: list[Bytes] = field(default_factory=list)
    nbytes: int = 0
    plan: str = RAW
    blocks: list[Block | None] = field(default_factory=list)
    _planning: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, piece: Bytes) -> int:
        """Append memory; returns where it starts in the region."""
        start = self.nbytes
        self.pieces.append(piece)
        self.nbytes += len(piece)
        self.blocks = [None] * block_count(self.nbytes)
        return start

    def make_plan(self, codec: BlockCodec) -> None:
        """Fill in ``plan`` from a sample, unless another thread has done so."""
        with self._planning:
            if self.plan == RAW:
                self.plan = codec.plan(self.block(len(self.blocks) // 2), self.width)

    def block(self, index: int) -> Bytes:
        """The bytes of one block."""
        whole = self.pieces[0] if len(self.pieces) == 1 else np.concatenate(self.pieces)
        return whole[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


@dataclass(slots=True)
class Layout:
    """Where everything of a snapshot is stored.

    Attributes:
        sources: The regions.
        entries: The tensors.
        memory: The bytes of each tensor.
        places: Index of each tensor's region, and its offset in it.
    """

    sources: list[Source] = field(default_factory=list)
    entries: list[TensorEntry] = field(default_factory=list)
    memory: list[Bytes] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def embed(self, name: str, content: bytes) -> None:
        """Store the content of a file as a tensor of bytes in a region of its own."""
        size = len(content)
        source = Source(width=1)
        self.places.append((len(self.sources), source.add(np.frombuffer(content, np.uint8))))
        self.sources.append(source)
        self.memory.append(source.pieces[0])
        entry = TensorEntry(name=name, dtype="uint8", shape=(size,), offset=0, nbytes=size, storage=-1)
        self.entries.append(entry)


def lay_out(entries: list[TensorEntry], arena: Bytes) -> Layout:
    """The regions of a snapshot.

    Raises:
        InvalidInputError: A tensor's description contradicts itself, the arena, or another one.
    """
    _check(entries, len(arena))
    layout = Layout(entries=list(entries), places=[(0, 0)] * len(entries))
    layout.memory += (arena[entry.offset : entry.offset + entry.nbytes] for entry in entries)
    shared: dict[str, int] = {}
    for group in _by_storage(entries):
        start = min(entries[i].offset for i in group)
        storage = arena[start : max(entries[i].offset + entries[i].nbytes for i in group)]
        region = _region_for(entries[group[0]].dtype, len(storage), layout.sources, shared)
        base = layout.sources[region].add(storage)
        for i in group:
            layout.places[i] = region, base + entries[i].offset - start
    return layout


def state_bytes(entries: list[TensorEntry]) -> int:
    """Bytes of memory that the tensors of a snapshot lie in, shared memory counted once."""
    total = 0
    for group in _by_storage(entries):
        windows = [entries[i] for i in group]
        total += max(e.offset + e.nbytes for e in windows) - min(e.offset for e in windows)
    return total


def _region_for(dtype: str, nbytes: int, sources: list[Source], shared: dict[str, int]) -> int:
    """The region that takes ``nbytes`` of a dtype: the one shared by small tensors, if it has room, or a new one."""
    width = DTYPES[dtype].plane_width
    # views of another dtype can make memory end inside of a number
    small = nbytes < _SMALL and nbytes % width == 0
    if small and dtype in shared and sources[shared[dtype]].nbytes + nbytes <= BLOCK_BYTES:
        return shared[dtype]
    sources.append(Source(width=width if nbytes % width == 0 else 1))
    if small:
        shared[dtype] = len(sources) - 1
    return len(sources) - 1


def _by_storage(entries: list[TensorEntry]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        groups.setdefault(entry.storage, []).append(index)
    return list(groups.values())


def _check(entries: list[TensorEntry], arena_bytes: int) -> None:
    names: set[str] = set()
    for entry in entries:
        element = DTYPES.get(entry.dtype)
        if element is None:
            raise _refused(entry, f"has the dtype {entry.dtype}, which cannot be stored")
        if span_of(entry.shape, entry.stride, element.itemsize) != entry.nbytes:
            raise _refused(entry, f"has {entry.nbytes} bytes for shape {entry.shape} and strides {entry.stride}")
        if entry.offset < 0 or entry.offset + entry.nbytes > arena_bytes:
            raise _refused(entry, f"lies outside of the snapshot's {arena_bytes} bytes")
        if entry.name in names:
            raise _refused(entry, "is there twice")
        names.add(entry.name)


def _refused(entry: TensorEntry, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the tensor {entry.name!r} {what}", cure="save it as a contiguous copy under its own name"
    )
