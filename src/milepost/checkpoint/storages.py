"""Which stretches of live memory make up a snapshot, and where in an arena does each of them go?

Tensors are views of storages. Views of one storage that overlap become one *piece*: the span of bytes they cover is
copied once, and each is a window of the copy. Everything else is copied for itself: as it lies in memory where it is
dense, else in C order. So a small view of a huge storage costs only what it shows, and nothing is copied twice unless
a span over wide gaps would cost more than that.

Pure: addresses and sizes in, offsets out. The answer for a state that lies where it lay at the save before is
remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry

__all__ = ["Arrangement", "Piece", "View", "arrange"]

_PAGE, _LINE, _LARGE = 4096, 64, 64 << 10
_LARGEST_ELEMENT = 16  # spans begin at multiples of it, so that each window in one stays aligned
_REMEMBERED = 4


class View(NamedTuple):  # hashed and compared by the hundred at each save: no dataclass is as quick
    """One tensor as a view of its storage.

    Attributes:
        name: Unique in the snapshot.
        dtype: A name of :data:`milepost.checkpoint.dtypes.DTYPES`.
        stored: The dtype it is to have in the arena; another one than ``dtype`` where the save is lossy.
        shape: Elements along each dimension.
        stride: Elements from one index to the next along each dimension; None if contiguous (C order).
        dense: Its elements lie without gaps, each once, if not in C order.
        start: Of its first element in the storage, in bytes.
        storage: Device, address and length of the storage; equal ones are the same memory.
    """

    name: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    dense: bool
    start: int
    storage: tuple[str, int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements alone, as they are in memory."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def span(self) -> int:
        """Bytes from its first to its last element; less than ``nbytes`` only if some elements are there twice."""
        if self.stride is None or 0 in self.shape:
            return self.nbytes
        last = sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of the arena that is filled from one place.

    Attributes:
        offset: Where it begins in the arena.
        nbytes: Its length there.
        tensor: Index of a tensor whose storage holds it.
        members: Indices of all tensors that are windows of it.
        start: Of the span in the storage, in bytes; None: the piece is that one tensor.
        stored: dtype of the numbers in the arena.
    """

    offset: int
    nbytes: int
    tensor: int
    members: tuple[int, ...]
    start: int | None
    stored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where a snapshot lies in an arena.

    Attributes:
        entries: What the writer is told of each tensor.
        pieces: What to copy, by rising offset.
        nbytes: How large the arena must be.
    """

    entries: tuple[TensorEntry, ...]
    pieces: tuple[Piece, ...]
    nbytes: int


@lru_cache(maxsize=_REMEMBERED)
def arrange(views: tuple[View, ...]) -> Arrangement:
    """A place in the arena for each tensor, and for each stretch of memory that several share."""
    entries: dict[int, TensorEntry] = {}
    pieces: list[Piece] = []
    end = 0
    for members in _together(views):
        piece = _piece(views, members, end)
        for index in members:
            entries[index] = _entry(views[index], piece, storage=len(pieces))
        pieces.append(piece)
        end = piece.offset + piece.nbytes
    ordered = tuple(entries[index] for index in range(len(views)))
    return Arrangement(entries=ordered, pieces=tuple(pieces), nbytes=end)


def _piece(views: tuple[View, ...], members: tuple[int, ...], end: int) -> Piece:
    first = views[members[0]]
    start: int | None = None
    if len(members) == 1:
        nbytes = math.prod(first.shape) * DTYPES[first.stored].itemsize
    else:
        start, stop = _extent(views, members)
        start -= start % _LARGEST_ELEMENT
        nbytes = stop - start
    alignment = _PAGE if nbytes >= _LARGE else _LINE
    return Piece(
        offset=-(-end // alignment) * alignment,
        nbytes=nbytes,
        tensor=members[0],
        members=members,
        start=start,
        stored=first.stored,
    )


def _entry(view: View, piece: Piece, *, storage: int) -> TensorEntry:
    if piece.start is None:
        stride = view.stride if view.dense else None
        offset, nbytes = piece.offset, piece.nbytes
    else:
        stride = view.stride
        offset, nbytes = piece.offset + view.start - piece.start, view.span
    return TensorEntry(
        name=view.name,
        dtype=view.stored,
        shape=view.shape,
        stride=stride,
        offset=offset,
        nbytes=nbytes,
        storage=storage,
        original=view.dtype if view.stored != view.dtype else None,
    )


def _together(views: tuple[View, ...]) -> Iterator[tuple[int, ...]]:
    """The tensors of each piece, in the order of their first ones."""
    sharing = [group for group in _by_storage(views) if len(group) > 1]
    spans = {index: span for group in sharing for span in _worthwhile(views, group) for index in span}
    for index in range(len(views)):
        members = spans.get(index, (index,))
        if members[0] == index:
            yield members


def _by_storage(views: tuple[View, ...]) -> Iterable[list[int]]:
    """Tensors that may become windows of one span: not those that repeat elements, are empty, or change on the way."""
    groups: dict[tuple[str, int, int], list[int]] = {}
    for index, view in enumerate(views):
        if 0 < view.nbytes <= view.span and view.stored == view.dtype:
            groups.setdefault(view.storage, []).append(index)
    return groups.values()


def _worthwhile(views: tuple[View, ...], group: list[int]) -> Iterator[tuple[int, ...]]:
    """Those that overlap, unless their span has gaps that cost more than copying each for itself."""
    for members in _overlapping(views, group):
        start, stop = _extent(views, members)
        if len(members) > 1 and stop - start <= sum(views[index].nbytes for index in members):
            yield members


def _overlapping(views: tuple[View, ...], group: list[int]) -> Iterator[tuple[int, ...]]:
    by_start = sorted(group, key=lambda index: views[index].start)
    members: list[int] = []
    end = 0
    for index in by_start:
        if members and views[index].start >= end:
            yield tuple(sorted(members))
            members = []
        end = max(end if members else 0, views[index].start + views[index].span)
        members.append(index)
    yield tuple(sorted(members))


def _extent(views: tuple[View, ...], members: Iterable[int]) -> tuple[int, int]:
    start = min(views[index].start for index in members)
    stop = max(views[index].start + views[index].span for index in members)
    return start, stop
