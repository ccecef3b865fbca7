"""Planes of bytes are those of the numbers, and make the same numbers again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.checkpoint.planes import PlaneCutter


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_numbers_of_any_width_come_back_from_their_planes(width: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 256, count * width, np.uint8)
    cutter, again = PlaneCutter(), np.full_like(numbers, 0xAA)
    for byte in range(width):
        plane = np.empty(count, np.uint8)
        cutter.take(numbers, width, byte, plane)
        assert plane.tobytes() == numbers[byte::width].tobytes()
        cutter.put(plane, width, byte, again)
    assert again.tobytes() == numbers.tobytes()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_two_neighbouring_bytes_make_one_plane_of_words(width: int) -> None:
    numbers = np.arange(16 * width, dtype=np.uint8)
    cutter, again = PlaneCutter(), np.full_like(numbers, 0xAA)
    for byte in range(0, width, 2):
        plane = np.empty(2 * 16, np.uint8)
        cutter.take(numbers, width, byte, plane, span=2)
        assert plane.reshape(16, 2).tolist() == numbers.reshape(16, width)[:, byte : byte + 2].tolist()
        cutter.put(plane, width, byte, again, span=2)
    assert again.tobytes() == numbers.tobytes()


@pytest.mark.parametrize("nbytes", [(256 << 10) - 2, 256 << 10, (256 << 10) + 2, (1 << 20) + 6])
def test_stretches_meet_without_a_seam_also_in_memory_that_is_not_aligned(nbytes: int) -> None:
    memory = np.random.default_rng(0).integers(0, 256, nbytes + 1, np.uint8)
    numbers, again = memory[1:], np.zeros(nbytes + 1, np.uint8)[1:]
    cutter = PlaneCutter()
    for byte in range(2):
        plane = np.empty(nbytes // 2, np.uint8)
        cutter.take(numbers, 2, byte, plane)
        assert np.array_equal(plane, numbers[byte::2])
        cutter.put(plane, 2, byte, again)
    assert np.array_equal(again, numbers)
