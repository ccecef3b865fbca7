"""How are numbers taken apart into planes of their bytes, and put together again, at the speed of memory?

Numbers of 16 bits are shifted and cut, or shifted and joined, which processors do for many at once, while they step
through every second byte one by one: three times as fast. Wider numbers are stepped through, because what is to be
gained there is lost again to memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PlaneCutter"]

Bytes = npt.NDArray[np.uint8]

#: Bytes of numbers worked on at once: few enough to stay in the core's own cache, enough to be worth a call.
_STRETCH = 256 << 10

_SHIFTED = 2  # width of the numbers that are shifted


class PlaneCutter:
    """Takes planes out of numbers and puts them back, with the memory of one thread."""

    def __init__(self) -> None:
        self._room = np.empty(_STRETCH, np.uint8)

    def take(self, data: Bytes, width: int, byte: int, out: Bytes, *, span: int = 1) -> None:
        """Copy the bytes from ``byte`` on, ``span`` of each number, to ``out``.

        Args:
            data: The numbers, shape ``(n * width,)``.
            width: Bytes of a number.
            byte: The lowest one wanted, counted from the number's lowest.
            out: Shape ``(n * span,)``.
            span: 1 or 2; with 2, ``byte`` is even.
        """
        lane = out.view(_unsigned(span))
        if width != _SHIFTED:
            np.copyto(lane, _strided(data, width, byte, span))
            return
        numbers, room = data.view(_unsigned(width)), self._room.view(_unsigned(width))
        for start in range(0, len(numbers), len(room)):
            stretch = numbers[start : start + len(room)]
            if byte:
                stretch = np.right_shift(stretch, 8 * byte, out=room[: len(stretch)])
            lane[start : start + len(room)] = stretch  # cut to the lane's width

    def put(self, plane: Bytes, width: int, byte: int, out: Bytes, *, span: int = 1) -> None:
        """The inverse of :meth:`take`, for each number's bytes from the lowest to the highest.

        Args:
            plane: Shape ``(n * span,)``.
            width: Bytes of a number.
            byte: Where they belong; those below were put before, those above have no meaning yet.
            out: The numbers, shape ``(n * width,)``.
            span: As it was taken.
        """
        lane = plane.view(_unsigned(span))
        if width != _SHIFTED:
            np.copyto(_strided(out, width, byte, span), lane)
            return
        numbers, room = out.view(_unsigned(width)), self._room.view(_unsigned(width))
        for start in range(0, len(numbers), len(room)):
            stretch = numbers[start : start + len(room)]
            part = lane[start : start + len(room)]
            if not byte:
                stretch[:] = part
                continue
            high = room[: len(stretch)]
            high[:] = part
            np.left_shift(high, 8 * byte, out=high)
            np.bitwise_or(stretch, high, out=stretch)


def _strided(data: Bytes, width: int, byte: int, span: int) -> npt.NDArray[Any]:
    return data.view(_unsigned(span))[byte // span :: width // span]


def _unsigned(width: int) -> np.dtype[Any]:
    return np.dtype(f"<u{width}")
