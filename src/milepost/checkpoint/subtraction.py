"""What is left of a block of numbers once those of an earlier checkpoint are taken away?

Between two checkpoints a number changes little, so the difference has few bits. Two kinds are of use:

- the integer difference of the bit patterns, folded (zig-zag) so that small negative ones are small too;
- for numbers that decay between checkpoints, as second moments do, the difference to the earlier one times a constant.
  The constant is a low quantile of the quotients, so nearly all differences are positive and need no folding.

Everything is modulo the range of the number, so it is exact for any bits: NaN payloads, infinities, integers.
:mod:`milepost.checkpoint.differences` undoes it.

**Invariant**: a product that a difference is taken to has the same bits on every machine. IEEE 754 fixes its rounding,
but not the bits of NaN, so :func:`is_scalable` refuses blocks that hold one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SCALED_WIDTH", "equal", "is_scalable", "scale_between", "subtract_folded", "subtract_scaled"]

Bytes = npt.NDArray[np.uint8]

#: Bytes of the numbers that can be predicted by scaling: those of float32.
SCALED_WIDTH = 4

#: Bytes worked on at once: they stay in the core's own cache from one operation to the next.
_STRETCH = 128 << 10

_FLOAT = np.dtype("<f4")
_WORD = np.dtype("<u4")
_PROBE_BYTES = 4096
_QUANTILE = 0.001
_FEWEST = 64


def equal(data: Bytes, base: Bytes) -> bool:
    """Whether both hold the same bytes. Most blocks differ in their first page, so that is looked at first."""
    return np.array_equal(data[:_PROBE_BYTES], base[:_PROBE_BYTES]) and np.array_equal(data, base)


def subtract_folded(data: Bytes, base: Bytes, width: int, out: Bytes) -> None:
    """The zig-zag of ``data - base``: 0, -1, 1, -2 become 0, 1, 2, 3.

    Args:
        data: Shape ``(n * width,)``.
        base: As long.
        width: Bytes of a number.
        out: As long; receives the folded differences.
    """
    unsigned, signed = np.dtype(f"<u{width}"), np.dtype(f"<i{width}")
    room = np.empty(min(_STRETCH, len(data)) // width, signed)
    for start in range(0, len(data), _STRETCH):
        piece = slice(start, start + _STRETCH)
        numbers = out[piece].view(unsigned)
        np.subtract(data[piece].view(unsigned), base[piece].view(unsigned), out=numbers)
        difference = numbers.view(signed)
        sign = room[: len(difference)]
        np.right_shift(difference, 8 * width - 1, out=sign)
        np.left_shift(difference, 1, out=difference)
        np.bitwise_xor(difference, sign, out=difference)


def subtract_scaled(data: Bytes, base: Bytes, scale: int, out: Bytes) -> None:
    """The difference of the bits of ``data`` to those of ``base`` times a constant.

    Args:
        data: Numbers of 32 bits, shape ``(n * 4,)``.
        base: As many float32.
        scale: The constant, as the 32 bits of a float32.
        out: As long; receives the differences.
    """
    factor = np.array(scale, _WORD).view(_FLOAT)
    room = np.empty(min(_STRETCH, len(data)) // SCALED_WIDTH, _FLOAT)
    for start in range(0, len(data), _STRETCH):
        piece = slice(start, start + _STRETCH)
        numbers = base[piece].view(_FLOAT)
        predicted = room[: len(numbers)]
        with np.errstate(all="ignore"):  # the base may hold anything, and only its bits count
            np.multiply(numbers, factor, out=predicted)
        np.subtract(data[piece].view(_WORD), predicted.view(_WORD), out=out[piece].view(_WORD))


def is_scalable(base: Bytes) -> bool:
    """Whether every product with a number of ``base`` has the same bits on every machine: it holds no NaN."""
    with np.errstate(invalid="ignore"):
        return not np.isnan(base.view(_FLOAT).max(initial=0.0))


def scale_between(data: Bytes, base: Bytes) -> int | None:
    """What the numbers of ``base`` are to be multiplied by to come close to ``data`` from below, or None.

    Args:
        data: A sample of float32, shape ``(n * 4,)``.
        base: The same numbers earlier.

    Returns:
        The 32 bits of a positive, finite float32.
    """
    now, before = data.view(_FLOAT), base.view(_FLOAT)
    usable = np.isfinite(now) & np.isfinite(before)
    usable &= (now > 0) & (before > 0)
    if np.count_nonzero(usable) < max(_FEWEST, len(now) // 2):
        return None
    with np.errstate(over="ignore", under="ignore"):
        quotients = now[usable] / before[usable]
    scale = np.quantile(quotients, _QUANTILE, method="lower").astype(_FLOAT)
    return int(scale.view(_WORD)) if 0 < scale < np.inf else None
