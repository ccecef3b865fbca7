"""Which element types can a checkpoint hold, and how wide are they?

The names are torch's, without ``torch.``. What NumPy has too is read as such; the others (``bfloat16``, the 8-bit
floats, ``complex32``) are read as unsigned integers of the same width, and their name is kept beside the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DTYPES", "ElementType", "name_of_numpy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """One dtype.

    Attributes:
        name: torch's name without ``torch.``.
        itemsize: Bytes of one element.
        plane_width: Bytes of one number inside it, which the codec splits into planes: half an element if complex.
        numpy: The little-endian NumPy dtype it is read as.
        native: Whether ``numpy`` means the same numbers, rather than only the same bytes.
    """

    name: str
    itemsize: int
    plane_width: int
    numpy: np.dtype[Any]
    native: bool


def _native(name: str) -> ElementType:
    dtype = np.dtype(name).newbyteorder("<")
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return ElementType(name=name, itemsize=dtype.itemsize, plane_width=width, numpy=dtype, native=True)


def _foreign(name: str, itemsize: int, plane_width: int) -> ElementType:
    dtype = np.dtype(f"<u{itemsize}")
    return ElementType(name=name, itemsize=itemsize, plane_width=plane_width, numpy=dtype, native=False)


DTYPES: dict[str, ElementType] = {
    element.name: element
    for element in (
        *map(_native, ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")),
        *map(_native, ("float16", "float32", "float64", "complex64", "complex128")),
        _foreign("bfloat16", 2, 2),
        _foreign("complex32", 4, 2),
        _foreign("float8_e4m3fn", 1, 1),
        _foreign("float8_e4m3fnuz", 1, 1),
        _foreign("float8_e5m2", 1, 1),
        _foreign("float8_e5m2fnuz", 1, 1),
        _foreign("float8_e8m0fnu", 1, 1),
        _foreign("float4_e2m1fn_x2", 1, 1),
    )
}


def name_of_numpy(dtype: np.dtype[Any]) -> str | None:
    """The name under which a NumPy dtype is stored, or None if its arrays cannot be stored as tensors."""
    element = DTYPES.get(dtype.name)
    return element.name if element is not None and element.native and element.numpy == dtype else None
