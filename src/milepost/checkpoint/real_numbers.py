"""Which real numbers do the elements of any dtype stand for, without torch?

Formats narrower than float16 are looked up in tables made from their definition (OCP 8-bit floating point, revision 1;
OCP microscaling formats, version 1; the ``fnuz`` variants of ONNX): sign, exponent, mantissa, bias, and what is no
finite number.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from milepost.checkpoint.dtypes import DTYPES

__all__ = ["real_numbers"]

#: By name: bits of the exponent, bits of the mantissa, bias, codes that are NaN, codes that are infinite.
_NARROW: dict[str, tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = {
    "float8_e4m3fn": (4, 3, 7, (0x7F, 0xFF), ()),
    "float8_e4m3fnuz": (4, 3, 8, (0x80,), ()),
    "float8_e5m2": (5, 2, 15, (0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), (0x7C, 0xFC)),
    "float8_e5m2fnuz": (5, 2, 16, (0x80,), ()),
}
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def real_numbers(elements: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    """The values of elements as read from a file, flat.

    Args:
        elements: Of any shape, as NumPy reads the dtype: unsigned integers of its width where NumPy has no such dtype.
        dtype: torch's name of it.

    Returns:
        Shape ``(n,)``; a complex number is its two parts, a byte of ``float4_e2m1fn_x2`` its two numbers.
    """
    flat = np.ascontiguousarray(elements).reshape(-1)
    if DTYPES[dtype].native:
        if flat.dtype.kind == "c":
            flat = flat.view(np.dtype(f"<f{flat.itemsize // 2}"))
    elif dtype == "bfloat16":
        flat = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype == "complex32":
        flat = flat.view(np.dtype("<f2"))
    else:
        flat = _table(dtype)[flat].reshape(-1)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        return flat.astype(np.float64, copy=False)


@cache
def _table(dtype: str) -> npt.NDArray[np.float64]:
    """The value, or values, of each byte."""
    codes = np.arange(256)
    if dtype == "float4_e2m1fn_x2":  # the first of the two lies in the low half
        halves = np.array(_FLOAT4)
        return np.stack((halves[codes & 15], halves[codes >> 4]), axis=1)
    if dtype == "float8_e8m0fnu":
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127))
    exponent_bits, mantissa_bits, bias, nan, infinite = _NARROW[dtype]
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values: npt.NDArray[np.float64] = sign * np.where(
        exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias)
    )
    values[list(infinite)] = sign[list(infinite)] * np.inf
    values[list(nan)] = np.nan
    return values
