"""What does a tensor of a file look like before it is read, and how little of the file does a slice of it need?

Like an array that is read when it is asked for numbers: a slice or an index of the first dimension reads only the
blocks that those rows lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from milepost.checkpoint.codec import Bytes
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.manifest import StoredTensor
from milepost.core.errors import InvalidInputError

__all__ = ["StoredArray", "shaped"]


class StoredArray:
    """A tensor in a file. ``array[:10]``, ``array.numpy()`` and ``numpy.asarray(array)`` read it.

    Args:
        stored: What the manifest says of it.
        read: Fills memory with the tensor's bytes from an offset on.

    Attributes:
        shape: Elements along each dimension.
        dtype: The NumPy dtype it is read as: unsigned integers of the same width where NumPy has no such dtype.
        dtype_name: torch's name of its dtype, for example ``"bfloat16"``.
        nbytes: Bytes from its first to its last element.
    """

    def __init__(self, stored: StoredTensor, read: Callable[[StoredTensor, int, Bytes], None]) -> None:
        self.shape = stored.shape
        self.dtype: np.dtype[Any] = DTYPES[stored.dtype].numpy
        self.dtype_name = stored.dtype
        self.nbytes = stored.nbytes
        self._stored = stored
        self._read = read

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")  # what NumPy says of an array without dimensions
        return self.shape[0]

    def __repr__(self) -> str:
        return f"StoredArray({self._stored.name!r}, shape={self.shape}, dtype_name={self.dtype_name!r})"

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numpy())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise InvalidInputError("a stored tensor has no memory to share", cure="leave out copy=False")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def numpy(self) -> npt.NDArray[Any]:
        """All of it, in new memory, its digest checked.

        Raises:
            CorruptDataError: It is damaged; the message names file, tensor and offset.
            NotFoundError: It is stored as differences to a file that is not there.
        """
        content = np.empty(self.nbytes, np.uint8)
        self._read(self._stored, 0, content)
        return shaped(self._stored, content)

    def __getitem__(self, key: Any) -> Any:
        """Part of it, as NumPy would give it; what lies outside of the rows asked for is not read.

        Raises:
            IndexError: There is no such place in it.
            CorruptDataError: It is damaged; the message names file, tensor and offset.
            NotFoundError: It is stored as differences to a file that is not there.
        """
        first, *rest = key if isinstance(key, tuple) and key else (key,)
        whole_only = self._stored.stride is not None or not self.shape
        if whole_only or isinstance(first, bool) or not isinstance(first, (int, np.integer, slice)):
            return self.numpy()[key]
        if isinstance(first, slice):
            rows = range(*first.indices(self.shape[0]))
            low, high = (min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1) if rows else (0, 0)
            return self._rows(low, high)[(slice(None, None, rows.step), *rest)]
        row = int(first) + (self.shape[0] if first < 0 else 0)
        if not 0 <= row < self.shape[0]:
            raise IndexError(f"index {first} is out of bounds for axis 0 with size {self.shape[0]}")
        return self._rows(row, row + 1)[(0, *rest)]

    def _rows(self, low: int, high: int) -> npt.NDArray[Any]:
        row_bytes = self.nbytes // max(self.shape[0], 1)
        content = np.empty((high - low) * row_bytes, np.uint8)
        self._read(self._stored, low * row_bytes, content)
        return content.view(self.dtype).reshape(high - low, *self.shape[1:])


def shaped(stored: StoredTensor, content: Bytes) -> npt.NDArray[Any]:
    """The bytes of a tensor as an array of its shape and strides."""
    values = content.view(DTYPES[stored.dtype].numpy)
    if stored.stride is None or not values.size:
        return values.reshape(stored.shape)
    strides = tuple(step * values.itemsize for step in stored.stride)
    return np.lib.stride_tricks.as_strided(values, stored.shape, strides)
