"""How does a block that was stored as differences become the numbers again?

- ``=``: the bytes of the base's block;
- ``d``: zig-zag of the integer difference to the base, modulo the number's range: 0, -1, 1, -2 are 0, 1, 2, 3;
- ``s``: difference of the 32 bits to those of the base's float32 times a scale, modulo 2^32.

A multiplication of float32 is exact to the last bit everywhere but on a host that flushes tiny numbers to zero; there
the tensor's digest tells.
"""

from __future__ import annotations

import numpy as np

from milepost.checkpoint.codec import SAME, Bytes

__all__ = ["undo_differences"]

#: Bytes worked on at once: what is passed over several times stays in the core's own cache.
_STRETCH = 128 << 10


def undo_differences(kind: str, values: Bytes, base: Bytes, *, width: int, scale: int) -> None:
    """Turn differences into the numbers, in place.

    Args:
        kind: First letter of the block's encoding: ``=``, ``d`` or ``s``.
        values: The decoded planes, shape ``(n * width,)``; of no meaning if ``kind`` is ``=``.
        base: The base's block, of the same length.
        width: Bytes of a number.
        scale: float32 by which ``s`` predicts, as its 32 bits.
    """
    if kind == SAME:
        np.copyto(values, base)
        return
    scratch = np.empty(min(_STRETCH, len(values)), np.uint8)
    for start in range(0, len(values), _STRETCH):
        stretch, origin = values[start : start + _STRETCH], base[start : start + _STRETCH]
        room = scratch[: len(stretch)]
        if kind == "d":
            _add_folded(stretch, origin, room, np.dtype(f"<u{width}"))
        else:
            _add_scaled(stretch, origin, room, scale)


def _add_folded(values: Bytes, base: Bytes, room: Bytes, dtype: np.dtype[np.unsignedinteger]) -> None:
    numbers, sign = values.view(dtype), room.view(dtype)
    np.bitwise_and(numbers, 1, out=sign)
    np.negative(sign, out=sign)
    np.right_shift(numbers, 1, out=numbers)
    np.bitwise_xor(numbers, sign, out=numbers)
    np.add(numbers, base.view(dtype), out=numbers)


def _add_scaled(values: Bytes, base: Bytes, room: Bytes, scale: int) -> None:
    factor = np.array(scale, "<u4").view("<f4")
    with np.errstate(all="ignore"):  # a forged base may hold anything, and only the bits count
        np.multiply(base.view("<f4"), factor, out=room.view("<f4"))
    bits = values.view("<u4")
    np.add(bits, room.view("<u4"), out=bits)
