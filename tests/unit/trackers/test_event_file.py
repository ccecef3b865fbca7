"""The bytes of event files."""

from __future__ import annotations

import importlib
import struct
import sys

import pytest

from milepost.core.errors import MissingDependencyError
from milepost.trackers.event_file import EventEncoder

pytest.importorskip("tensorboard")


def _framed(data: bytes) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _message(event: bytes) -> bytes:
    return event[12:-4]


def test_the_frame_is_what_tensorboards_own_writer_makes():
    encoder = EventEncoder()
    for event in (
        encoder.file_start(1.5),
        encoder.scalars(2.5, 7, {"loss": 0.1}),
        encoder.session_start(3.0, 9),
        encoder.text(3.0, 1, "n", "x" * 70_000),
    ):
        assert event == _framed(_message(event))


def test_the_fast_checksum_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("google_crc32c")
    fast = EventEncoder().scalars(2.5, 7, {"loss": 0.1})
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    assert EventEncoder().scalars(2.5, 7, {"loss": 0.1}) == fast


def test_a_step_beyond_64_bits_is_held_at_the_border():
    from tensorboard.compat.proto import event_pb2

    event = event_pb2.Event.FromString(_message(EventEncoder().scalars(0.0, 2**70, {"a": 1.0})))
    assert event.step == 2**63 - 1


def test_an_absent_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    importlib.invalidate_caches()
    with pytest.raises(MissingDependencyError, match="TensorBoard not available") as caught:
        EventEncoder()
    assert caught.value.cure == "pip install tensorboard"
