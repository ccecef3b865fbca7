from __future__ import annotations

import numpy as np
import pytest
import torch

from milepost.checkpoint.real_numbers import real_numbers

EIGHT_BITS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("dtype", [name for name in EIGHT_BITS if hasattr(torch, name)])
def test_every_8_bit_float_is_the_number_that_torch_says(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(getattr(torch, dtype)).to(torch.float32).double().numpy()

    np.testing.assert_array_equal(real_numbers(codes, dtype), expected)


def test_every_bfloat16_is_the_number_that_torch_says() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16).to(torch.float64).numpy()

    np.testing.assert_array_equal(real_numbers(codes, "bfloat16"), expected)


def test_complex_numbers_are_their_parts_and_packed_ones_both_of_them() -> None:
    assert real_numbers(np.array([1 + 2j, 3j], np.complex64), "complex64").tolist() == [1, 2, 0, 3]
    assert real_numbers(np.array([1, 2], np.float16).view(np.uint32), "complex32").tolist() == [1, 2]
    assert real_numbers(np.array([[0x21, 0xF7]], np.uint8), "float4_e2m1fn_x2").tolist() == [0.5, 1, 6, -6]


def test_whole_numbers_and_truth_values_are_numbers_too() -> None:
    assert real_numbers(np.array([[True, False]]), "bool").tolist() == [1, 0]
    assert real_numbers(np.array(-7, np.int64), "int64").tolist() == [-7]
