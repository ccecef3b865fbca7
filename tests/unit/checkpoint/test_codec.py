"""Blocks come back bit for bit, and a forged one is refused before anything is allocated for it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.codec import BLOCK_BYTES, RAW, BlockCodec, DamagedBlockError, EncodedBlock, lane_sizes

WIDTHS = (1, 2, 4, 8)


def normal(count: int, dtype: str = "<f4") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(count).astype(dtype).view(np.uint8)


def encode(data: np.ndarray, width: int, plan: str) -> tuple[np.ndarray, EncodedBlock]:
    out = np.full(len(data) + 4096, 0xEE, np.uint8)
    block = BlockCodec().encode(data, width, plan, out)
    return out[: block.stored], block


def decode(stored: np.ndarray, block: EncodedBlock, width: int, length: int) -> np.ndarray:
    out = np.full(length, 0xAA, np.uint8)
    BlockCodec().decode(stored, block, width, out)
    return out


@given(
    st.sampled_from(WIDTHS).flatmap(
        lambda width: st.tuples(
            st.just(width),
            st.text("RHL", min_size=width, max_size=width) | st.just(RAW),
            st.integers(1, 700).flatmap(lambda count: st.binary(min_size=count * width, max_size=count * width)),
        )
    ),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_every_block_comes_back_whatever_the_plan(case: tuple[int, str, bytes], repeat: bool) -> None:
    width, plan, content = case
    data = np.frombuffer(content[:width] * (len(content) // width) if repeat else content, np.uint8)
    stored, block = encode(data, width, plan)
    assert decode(stored, block, width, len(data)).tobytes() == data.tobytes()
    assert block.stored <= len(data) + 64 * width


def test_noise_is_kept_raw_in_one_wide_lane_and_exponents_are_compressed() -> None:
    data = normal(BLOCK_BYTES // 4)
    plan, _ = BlockCodec().plan(data[: 64 << 10], 4)
    stored, block = encode(data, 4, plan)
    assert plan[:2] == "RR"
    assert plan[3] in "HL"
    assert block.encoding[0] == "w"
    assert block.encoding[-1] == "z"
    assert len(stored) < 0.85 * len(data)
    assert decode(stored, block, 4, len(data)).tobytes() == data.tobytes()


def test_short_sequences_are_left_to_the_compressor_that_finds_them() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 256, (64, 5), np.uint8)
    assert BlockCodec().plan(words[generator.integers(0, 64, 20_000)].reshape(-1)[: 64 << 10], 1)[0] == "L"


def test_a_plan_does_not_outlive_its_usefulness_in_a_noisy_block() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)
    _, block = encode(noise, 1, "H")
    assert block.encoding == "r"


def frame_declaring(size: int) -> bytes:
    """A zstd frame whose header declares a content of ``size`` bytes."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


@pytest.mark.parametrize("size", [1 << 40, 1001, 999, 0])
def test_a_frame_that_declares_another_size_is_refused_unread(size: int) -> None:
    frame = np.frombuffer(frame_declaring(size), np.uint8)
    assert zstandard.get_frame_parameters(frame.data).content_size == size
    with pytest.raises(DamagedBlockError, match="declares"):
        decode(frame, EncodedBlock(encoding="z", lanes=(len(frame),)), 1, 1000)


def test_a_frame_that_ends_too_early_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    forged = np.frombuffer(frame[:-3], np.uint8)
    with pytest.raises(DamagedBlockError):
        decode(forged, EncodedBlock(encoding="z", lanes=(len(forged),)), 1, 1000)


def test_a_frame_without_a_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    frame = np.frombuffer(compressor.compress(bytes(1000)), np.uint8)
    with pytest.raises(DamagedBlockError, match="declares"):
        decode(frame, EncodedBlock(encoding="z", lanes=(len(frame),)), 1, 1000)


@pytest.mark.parametrize(
    ("encoding", "width"),
    [("rwr", 4), ("zzz", 4), ("zzzzz", 4), ("w", 1), ("x", 1), ("", 1), ("wzz", 8), ("raww", 4), ("zzzw", 4)],
)
def test_an_encoding_that_does_not_fit_its_numbers_is_no_encoding(encoding: str, width: int) -> None:
    assert lane_sizes(encoding, width, 64) is None


def test_a_block_that_is_no_multiple_of_its_numbers_is_no_block() -> None:
    assert lane_sizes("wzz", 4, 63) is None
    assert lane_sizes(RAW, 4, 63) == [63]
