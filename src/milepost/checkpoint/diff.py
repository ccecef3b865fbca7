"""How do two checkpoints differ, tensor by tensor?

Tensors whose digests agree are equal and are not read. The others are read piece by piece, by all cores, so that two
files of any size are compared in the memory of a few pieces. Torch is not needed.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.parallel import available_cores, share_out
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.checkpoint.real_numbers import real_numbers

__all__ = ["TensorDifference", "diff"]

#: What is read at once, several blocks, as a block that two pieces share is decoded for each of them.
_PIECE_BYTES = 8 << 20

#: What is computed at once, so that it stays in the processor's cache.
_STRETCH = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """One tensor of two checkpoints, ``a`` and ``b``.

    Attributes:
        name: Of the tensor.
        change: What is different, the first of these that holds.
        dtypes: In a and b; None where it is not.
        shapes: In a and b; None where it is not.
        nbytes: In the larger of the two.
        changed: Share of the elements that differ, 0 to 1. NaN equals NaN here, and -0 equals 0. None, as in all that
            follows, if the tensor is in one of them only or has another shape.
        l2: Euclidean length of ``b - a``.
        relative_l2: The same, divided by the length of a; None if that is 0.
        cosine: Of the angle between a and b; None if one of them has length 0.
        max_abs: Largest magnitude of an element of ``b - a``.
        not_finite: Elements that are NaN or infinite in a or b; they take no part in the four lengths.
    """

    name: str
    change: Literal["added", "removed", "shape", "dtype", "values", "equal"]
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    nbytes: int
    changed: float | None = None
    l2: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    not_finite: int | None = None


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    only: str | Collection[str] | None = None,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[TensorDifference]:
    """Compare two checkpoints of milepost's format.

    Args:
        a: The earlier one, say.
        b: The later one.
        only: Pattern or patterns of tensor names, ``"model.encoder.*"``.
        progress: Told how many bytes of how many were compared, from any thread but never from two at once.

    Returns:
        One entry per tensor: in the order of a, then what only b has.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: One of them is damaged; the message names file, tensor and offset.
    """
    patterns = (only,) if isinstance(only, str) else only
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        names = [name for name in dict.fromkeys((*first.tensors, *second.tensors)) if _is_wanted(name, patterns)]
        found = {name: _by_manifest(name, first.tensors.get(name), second.tensors.get(name)) for name in names}
        to_read = sorted((one for one in found.values() if _has_numbers_to_compare(one)), key=lambda one: -one.nbytes)
        total, done, lock = sum(one.nbytes for one in to_read), 0, threading.Lock()

        def compare(shares: Iterator[TensorDifference]) -> None:
            nonlocal done
            for one in shares:
                compared = _by_numbers(one, first, second)
                with lock:
                    found[one.name] = compared
                    done += one.nbytes
                    progress(done, total)

        share_out(to_read, compare, threads=available_cores())
    return list(found.values())


def _is_wanted(name: str, patterns: Collection[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _has_numbers_to_compare(one: TensorDifference) -> bool:
    return one.change in {"values", "dtype"}


def _by_manifest(name: str, a: StoredTensor | None, b: StoredTensor | None) -> TensorDifference:
    """What is known without reading a tensor."""
    change = _change(a, b)
    nothing = 0.0 if change == "equal" else None
    return TensorDifference(
        name=name,
        change=change,
        dtypes=(None if a is None else a.dtype, None if b is None else b.dtype),
        shapes=(None if a is None else a.shape, None if b is None else b.shape),
        nbytes=max(one.nbytes for one in (a, b) if one is not None),
        changed=nothing,
        l2=nothing,
        max_abs=nothing,
    )


def _change(
    a: StoredTensor | None, b: StoredTensor | None
) -> Literal["added", "removed", "shape", "dtype", "values", "equal"]:
    if a is None:
        return "added"
    if b is None:
        return "removed"
    if a.shape != b.shape:
        return "shape"
    if a.dtype != b.dtype:
        return "dtype"
    return "equal" if (a.digest, a.stride) == (b.digest, b.stride) else "values"


def _by_numbers(one: TensorDifference, a: CheckpointFile, b: CheckpointFile) -> TensorDifference:
    sums = _Sums()
    dtypes = a.tensors[one.name].dtype, b.tensors[one.name].dtype
    for piece_a, piece_b in zip(_pieces(a, one.name), _pieces(b, one.name), strict=True):
        for start in range(0, piece_a.size, _STRETCH):
            stretch = slice(start, start + _STRETCH)
            sums.add(real_numbers(piece_a[stretch], dtypes[0]), real_numbers(piece_b[stretch], dtypes[1]))
    length_a, length_b = math.sqrt(sums.square_a), math.sqrt(sums.square_b)
    l2 = math.sqrt(sums.square)
    return TensorDifference(
        name=one.name,
        change="equal" if one.change == "values" and not sums.changed else one.change,
        dtypes=one.dtypes,
        shapes=one.shapes,
        nbytes=one.nbytes,
        changed=sums.changed / sums.count if sums.count else 0.0,
        l2=l2,
        relative_l2=l2 / length_a if length_a else None,
        cosine=sums.product / (length_a * length_b) if length_a and length_b else None,
        max_abs=sums.largest,
        not_finite=sums.not_finite,
    )


def _pieces(file: CheckpointFile, name: str) -> Iterator[npt.NDArray[Any]]:
    """A tensor in stretches of rows, flat; the same ones for every tensor of its shape."""
    stored = file.tensors[name]
    # rows of a strided tensor are not stretches of the file
    array: Any = file[name] if stored.stride is None else np.asarray(file[name])
    if not stored.shape:
        yield np.asarray(array).reshape(-1)
        return
    rows = max(1, _PIECE_BYTES // max(1, 8 * math.prod(stored.shape[1:])))
    for start in range(0, stored.shape[0], rows):
        yield np.asarray(array[start : start + rows]).reshape(-1)


class _Sums:
    """What is added up over the pieces of a tensor, in float64."""

    def __init__(self) -> None:
        self.count = self.changed = self.not_finite = 0
        self.square = self.square_a = self.square_b = self.product = self.largest = 0.0

    def add(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> None:
        self.count += a.size
        self.changed += a.size - int(np.count_nonzero((a == b) | (np.isnan(a) & np.isnan(b))))
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            self.not_finite += a.size - int(np.count_nonzero(finite))
            a, b = a[finite], b[finite]
        if not a.size:
            return
        difference = b - a
        self.square += _product(difference, difference)
        self.square_a += _product(a, a)
        self.square_b += _product(b, b)
        self.product += _product(a, b)
        self.largest = max(self.largest, float(np.abs(difference).max()))


def _product(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Inner product without BLAS, whose own threads would fight with ours: twenty times slower on two cores."""
    return float(np.einsum("i,i->", a, b))
