"""Which tensors of a snapshot are stored together, and which alone?

A *region* is a stretch of bytes that is cut into blocks. A large tensor is a region; small tensors of one dtype share a
region of at most one block, because a block of its own would cost each of them more than its content; tensors that
share memory (tied weights, views) are windows of one region, so that the memory is stored once.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from milepost.checkpoint.codec import BLOCK_BYTES, Bytes
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.manifest import Block, block_count, span_of
from milepost.checkpoint.subtraction import scale_between
from milepost.core.errors import InvalidInputError

__all__ = ["Layout", "PieceSource", "Plan", "Source", "lay_out", "sample_of", "state_bytes"]

_SMALL = 64 << 10
_SAMPLE_BYTES = 64 << 10


class PieceSource(Protocol):
    """Memory of a snapshot that is not all there at once: a piece is asked for, used, and let go."""

    def bytes_of(self, start: int, end: int) -> Bytes:
        """The bytes between two addresses, those of one storage; several threads may ask at once, also for the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the blocks of a region are to be stored, found by a sample.

    Attributes:
        alone: Plan of the codec for a block that stands alone.
        alone_share: Bytes that it takes, as a share of the region's.
        beside: Plan for a block of a region with a base: the one that takes less, a difference or not; empty: unknown.
        beside_share: Bytes that it takes; 0 if the sample equals the base's.
    """

    alone: str
    alone_share: float
    beside: str = ""
    beside_share: float = 1.0


@dataclass(slots=True, kw_only=True)
class Source:
    """A region on its way into the file.

    Attributes:
        name: Of its first tensor.
        dtype: Of its first tensor.
        width: Bytes of the numbers by which the codec splits it.
        nbytes: Its length.
        blocks: What was stored, by index; None until then.
        plan: How to store it; None: raw.
        base: Index of the region of the base file that its blocks may be differences to.
        same: Whether it is known to equal that region.
        scale: What the base is multiplied by for scaled differences (32 bits of a float32); None: not known yet.
    """

    name: str
    dtype: str
    width: int
    nbytes: int = 0
    blocks: list[Block | None] = field(default_factory=list)
    plan: Plan | None = None
    base: int | None = None
    same: bool = False
    scale: int | None = None
    _loads: list[Callable[[], Bytes]] = field(default_factory=list, repr=False)
    _content: Bytes | None = field(default=None, repr=False)
    _pending: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, load: Callable[[], Bytes], nbytes: int) -> int:
        """Append memory that ``load`` gives; returns where it starts in the region."""
        start = self.nbytes
        self._loads.append(load)
        self.nbytes += nbytes
        self.blocks = [None] * block_count(self.nbytes)
        self._pending = len(self.blocks)
        return start

    def content(self) -> Bytes:
        """All its bytes; they stay loaded until :meth:`let_go` or the last :meth:`done`."""
        with self._lock:
            if self._content is None:
                pieces = [load() for load in self._loads]
                whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
                if not self._pending:
                    return whole
                self._content = whole
            return self._content

    def block(self, index: int) -> Bytes:
        """The bytes of one block, as :meth:`content` gives them."""
        return self.content()[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]

    def let_go(self) -> None:
        """Forget the memory; it is loaded again when it is needed again."""
        with self._lock:
            self._content = None

    def done(self) -> None:
        """One block was encoded; after the last one the memory is let go."""
        with self._lock:
            self._pending -= 1
            if self._pending == 0:
                self._content = None

    def scale_to(self, data: Bytes, base: Bytes) -> int | None:
        """What the base is multiplied by, decided by the first block that tells; None: this one does not tell."""
        with self._lock:
            if self.scale is None:
                self.scale = scale_between(sample_of(data, self.width), sample_of(base, self.width))
            return self.scale


@dataclass(slots=True)
class Layout:
    """Where everything of a snapshot is stored.

    Attributes:
        sources: The regions.
        entries: The tensors.
        places: Index of each tensor's region, and its offset in it.
    """

    sources: list[Source] = field(default_factory=list)
    entries: list[TensorEntry] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def embed(self, name: str, content: bytes) -> None:
        """Store the content of a file as a tensor of bytes in a region of its own."""
        size = len(content)
        source = Source(name=name, dtype="uint8", width=1)
        self.places.append((len(self.sources), source.add(lambda: np.frombuffer(content, np.uint8), size)))
        self.sources.append(source)
        entry = TensorEntry(name=name, dtype="uint8", shape=(size,), offset=0, nbytes=size, storage=-1)
        self.entries.append(entry)


def lay_out(entries: list[TensorEntry], memory: Bytes | PieceSource) -> Layout:
    """The regions of a snapshot.

    Args:
        entries: The tensors.
        memory: What their offsets are addresses of.

    Raises:
        InvalidInputError: A tensor's description contradicts itself, the memory, or another one.
    """
    _check(entries, len(memory) if isinstance(memory, np.ndarray) else sys.maxsize)
    layout = Layout(entries=list(entries), places=[(0, 0)] * len(entries))
    shared: dict[str, int] = {}
    for group in _by_storage(entries):
        start = min(entries[i].offset for i in group)
        end = max(entries[i].offset + entries[i].nbytes for i in group)
        region = _region_for(entries[group[0]], end - start, layout.sources, shared)
        base = layout.sources[region].add(_loader(memory, start, end), end - start)
        for i in group:
            layout.places[i] = region, base + entries[i].offset - start
    return layout


def _loader(memory: Bytes | PieceSource, start: int, end: int) -> Callable[[], Bytes]:
    if isinstance(memory, np.ndarray):
        return lambda: memory[start:end]
    return lambda: memory.bytes_of(start, end) if end > start else np.empty(0, np.uint8)


def sample_of(block: Bytes, width: int) -> Bytes:
    """The middle of a block, in whole numbers: enough to judge how it compresses."""
    count = min(len(block), _SAMPLE_BYTES) // width
    start = (len(block) // width - count) // 2 * width
    return block[start : start + count * width]


def state_bytes(entries: list[TensorEntry]) -> int:
    """Bytes of memory that the tensors of a snapshot lie in, shared memory counted once."""
    total = 0
    for group in _by_storage(entries):
        windows = [entries[i] for i in group]
        total += max(e.offset + e.nbytes for e in windows) - min(e.offset for e in windows)
    return total


def _region_for(first: TensorEntry, nbytes: int, sources: list[Source], shared: dict[str, int]) -> int:
    """The region that takes ``nbytes`` of a dtype: the one shared by small tensors, if it has room, or a new one."""
    width = DTYPES[first.dtype].plane_width
    # views of another dtype can make memory end inside of a number
    small = nbytes < _SMALL and nbytes % width == 0
    if small and first.dtype in shared and sources[shared[first.dtype]].nbytes + nbytes <= BLOCK_BYTES:
        return shared[first.dtype]
    sources.append(Source(name=first.name, dtype=first.dtype, width=width if nbytes % width == 0 else 1))
    if small:
        shared[first.dtype] = len(sources) - 1
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
