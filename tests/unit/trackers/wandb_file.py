"""Reads a ``.wandb`` transaction log: LevelDB framing around W&B's own protobuf messages."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_BLOCK = 32768
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def payloads(path: Path) -> Iterator[bytes]:
    """Every whole message; ends at a torn tail."""
    data = path.read_bytes()
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0), data[:7]
    at, parts = 7, []
    while at + _CHUNK.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:
            at += left
            continue
        crc, length, kind = _CHUNK.unpack_from(data, at)
        chunk = data[at + _CHUNK.size : at + _CHUNK.size + length]
        if len(chunk) < length:
            return
        assert zlib.crc32(bytes([kind]) + chunk) == crc, f"bad checksum at {at}"
        at += _CHUNK.size + length
        parts.append(chunk)
        if kind in {_FULL, _LAST}:
            yield b"".join(parts)
            parts = []


def records(path: Path) -> list[Any]:
    """The messages as ``wandb_internal_pb2.Record``."""
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(payload) for payload in payloads(path)]


def rows(path: Path) -> list[dict[str, Any]]:
    """The history: one dict per row, values as W&B will show them; ``_step`` is W&B's own step."""
    return [_row(record.history) for record in records(path) if record.WhichOneof("record_type") == "history"]


def _row(history: Any) -> dict[str, Any]:
    row = {item.key or "/".join(item.nested_key): _value(item) for item in history.item}
    return {"_step": history.step.num} | row


def _value(item: Any) -> Any:
    return json.loads(item.value_json) if item.value_json else None


@contextmanager
def no_login(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without a login, and with everything it keeps in a home below ``folder``."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(folder / "home"))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    yield
    wandb.teardown()
