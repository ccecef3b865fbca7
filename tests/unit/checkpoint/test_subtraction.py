"""Differences are exact for any bits: what is taken away comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.codec import BlockCodec, EncodedBlock, lane_letters
from milepost.checkpoint.differences import undo_differences
from milepost.checkpoint.subtraction import (
    equal,
    is_scalable,
    scale_between,
    subtract_folded,
    subtract_scaled,
)

WIDTHS = (1, 2, 4, 8)
NAN_PAYLOADS = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFBFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 1], "<u4")


def floats(*values: float) -> np.ndarray:
    return np.array(values, "<f4").view(np.uint8)


def pairs_of_bytes(width: int) -> st.SearchStrategy[tuple[int, bytes, bytes]]:
    def of_length(count: int) -> st.SearchStrategy[tuple[int, bytes, bytes]]:
        content = st.binary(min_size=count * width, max_size=count * width)
        return st.tuples(st.just(width), content, content)

    return st.integers(0, 300).flatmap(of_length)


@given(
    st.sampled_from(WIDTHS).flatmap(pairs_of_bytes),
    st.sampled_from("RHL"),
    st.sampled_from(["", "d", "s"]),
    st.integers(0, (1 << 32) - 1),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_any_block_comes_back_beside_any_base(
    case: tuple[int, bytes, bytes], way: str, relation: str, scale: int, frozen: bool
) -> None:
    width, content, base_content = case
    data = np.frombuffer(content, np.uint8)
    base = data.copy() if frozen else np.frombuffer(base_content, np.uint8)
    plan = (relation if relation != "s" or width == 4 else "d") + way * width
    out = np.full(len(data) + 1024, 0xEE, np.uint8)
    block = BlockCodec().encode(data, width, plan, out, base=base, scale=scale)
    if frozen:
        assert block == EncodedBlock(encoding="=", lanes=())
    assert restored(out[: block.stored], block, width, base, scale) == content


def restored(stored: np.ndarray, block: EncodedBlock, width: int, base: np.ndarray, scale: int) -> bytes:
    found = np.full(len(base), 0xAA, np.uint8)
    kind = block.encoding[:1]
    if kind not in {"=", "d", "s"}:
        BlockCodec().decode(stored, block, width, found)
        return found.tobytes()
    if kind != "=":
        planes = EncodedBlock(encoding=lane_letters(block.encoding), lanes=block.lanes)
        BlockCodec().decode(stored, planes, width, found)
    undo_differences(kind, found, base, width=width, scale=scale)
    return found.tobytes()


@pytest.mark.parametrize("plan", ["dHHHH", "sHHHH", "RRHH"])
def test_nan_payloads_infinities_and_signed_zeros_keep_every_bit(plan: str) -> None:
    data = np.tile(NAN_PAYLOADS, 100).view(np.uint8)
    base = np.tile(NAN_PAYLOADS[::-1], 100).view(np.uint8).copy()
    out = np.empty(len(data) + 1024, np.uint8)
    block = BlockCodec().encode(data, 4, plan, out, base=base, scale=0x3F000000)
    assert restored(out[: block.stored], block, 4, base, 0x3F000000) == data.tobytes()


def test_small_changes_become_small_numbers_of_either_sign() -> None:
    base = np.array([1000, 1000, 1000, 1000], "<u4").view(np.uint8)
    data = np.array([1000, 999, 1001, 998], "<u4").view(np.uint8)
    out = np.empty_like(data)
    subtract_folded(data, base, 4, out)
    assert out.view("<u4").tolist() == [0, 1, 2, 3]


def test_decayed_numbers_are_predicted_from_below() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(4000, np.float32)
    now = (before * np.float32(0.75) * (1 + 1e-4 * generator.random(4000, np.float32))).astype(np.float32)
    scale = scale_between(now.view(np.uint8), before.view(np.uint8))
    assert scale is not None
    assert np.array(scale, "<u4").view("<f4") == pytest.approx(0.75, rel=1e-3)
    left = np.empty(16_000, np.uint8)
    subtract_scaled(now.view(np.uint8), before.view(np.uint8), scale, left)
    assert np.mean(left.view("<u4") < 1 << 12) > 0.98


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (floats(*[-1.0] * 1000), floats(*[1.0] * 1000)),
        (floats(*[1.0] * 1000), floats(*[0.0] * 1000)),
        (floats(*[float("nan")] * 1000), floats(*[1.0] * 1000)),
        (floats(*[1.0] * 10), floats(*[2.0] * 10)),
        (floats(*[3e38] * 1000), floats(*[1e-38] * 1000)),
    ],
    ids=["signs differ", "from zero", "NaN", "too few", "beyond float32"],
)
def test_no_constant_is_made_up_where_there_is_none(now: np.ndarray, before: np.ndarray) -> None:
    assert scale_between(now, before) is None


def test_a_base_with_a_nan_is_not_scaled_because_machines_disagree_on_its_bits() -> None:
    assert is_scalable(floats(1.0, -0.0, float("inf")))
    assert not is_scalable(floats(1.0, float("nan"), 2.0))
    out = np.empty(1024, np.uint8)
    block = BlockCodec().encode(floats(1.0, 2.0), 4, "sHHHH", out, base=floats(float("nan"), 2.0), scale=0x3F800000)
    assert block.encoding == "raw"


def test_equality_is_that_of_bytes() -> None:
    nan = floats(float("nan"), 0.0)
    assert equal(nan, nan.copy())
    assert not equal(floats(0.0), floats(-0.0))
    late = np.zeros(10_000, np.uint8)
    late[-1] = 1
    assert not equal(late, np.zeros(10_000, np.uint8))
