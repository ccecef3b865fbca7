"""The words of the format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.runs.segment import (
    HEADER_BYTES,
    Header,
    find_record,
    new_log_id,
    pack_header,
    read_header,
    salt_of,
    seal_record,
    walk,
)

HEADER = Header(log_id=bytes(range(1, 17)), base=1 << 23, wall_ns=12, monotonic_ns=-3, segment_size=1 << 23)


def test_a_header_of_this_format_never_changes():
    assert pack_header(HEADER).hex() == (
        "934d504c4f470d0a"  # magic
        "00000000"  # format
        "4000"  # header bytes
        "17"  # segments of 2**23 bytes
        "00"
        "0102030405060708090a0b0c0d0e0f10"  # log id
        "0000800000000000"  # base
        "0c00000000000000"  # wall ns
        "fdffffffffffffff"  # monotonic ns
        "f1fed0f8249dddd4"  # hash of the others, base left out
    )
    assert read_header(pack_header(HEADER)) == HEADER


def test_the_base_may_be_stored_later():
    packed = bytearray(pack_header(HEADER))
    packed[32:40] = (5 << 23).to_bytes(8, "little")
    header = read_header(packed)
    assert header is not None
    assert header.base == 5 << 23


@given(st.integers(0, HEADER_BYTES - 1).filter(lambda at: not 32 <= at < 40), st.integers(1, 255))
def test_a_header_with_any_other_change_is_none(place, change):
    packed = bytearray(pack_header(HEADER))
    packed[place] ^= change
    assert read_header(packed) is None


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"\x93MPLOG\r\n"])
def test_what_is_no_header_is_none(data):
    assert read_header(data) is None


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 2**64 - 1))
def test_records_are_walked_to_the_first_that_is_none(payloads, salt):
    data = b"".join(seal_record(payload, salt) for payload in payloads)
    assert len(data) % 8 == 0
    view = memoryview(data + bytes(64))
    assert [bytes(found) for _, found in walk(view, 0, len(view), 0, salt)] == payloads
    assert list(walk(view, 0, len(view), 0, salt ^ 1)) == []


def test_a_record_is_found_behind_noise_and_one_that_is_cut_off_is_named():
    salt = salt_of(new_log_id())
    record = seal_record(b"\x95" + bytes(40), salt)
    noise = b"\xff" * 24
    view = memoryview(noise + record)
    assert find_record(view, len(view), salt) == (24, None)
    short = view[:-16]
    assert find_record(short, len(view), salt) == (None, 24)
    assert find_record(short, len(short), salt) == (None, None)
