"""A forged manifest is refused before anything is allocated by it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from milepost.checkpoint.envelope import LARGEST_MANIFEST, Trailer
from milepost.checkpoint.manifest import manifest_text, parse_manifest, span_of
from milepost.core.errors import CorruptDataError

FIRST, END = 4096, 1 << 30
CHECKSUM, DIGEST = "0" * 16, "0" * 32
BLOCK = 2 << 20


def sound() -> dict[str, Any]:
    return {
        "format": "milepost checkpoint",
        "block_bytes": BLOCK,
        "writer": {"milepost": "1"},
        "run": None,
        "base": ["checkpoint_x_1.milepost", DIGEST, 600],
        "side_files": ["side_files/r"],
        "tensors": [
            ["w", "float32", [2, 2], None, 0, 0, 16, DIGEST, None],
            ["v", "float32", [2, 2], [1, 2], 0, 16, 16, DIGEST, "float64"],
            ["m", "float32", [2, 2], None, 2, 0, 16, DIGEST, None],
            ["frozen", "float64", [2], None, 3, 0, 16, DIGEST, None],
            ["side_files/r", "uint8", [3], None, 1, 0, 3, DIGEST, None],
        ],
        "regions": [
            [32, 4, [[4096, "wzz", [16, 7, 5], CHECKSUM]], None],
            [3, 1, [[8192, "raw", [3], CHECKSUM]], None],
            [16, 4, [[12288, "swzr", [8, 3, 4], CHECKSUM]], [7, "3f800000"]],
            [16, 8, [[0, "=", [], CHECKSUM]], [8, "00000000"]],
        ],
        "tree": [1],
    }


def parse(content: Any) -> Any:
    return parse_manifest(json.dumps(content).encode(), first=FIRST, end=END)


def test_a_sound_manifest_comes_back_from_its_text() -> None:
    manifest = parse(sound())
    assert parse_manifest(manifest_text(manifest), first=FIRST, end=END) == manifest


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content = deepcopy(sound())
    node: Any = content
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("block_bytes",), 1 << 40),
        (("regions",), None),
        (("regions", 0, 0), -1),
        (("regions", 0, 0), 1 << 63),
        (("regions", 0, 0), 1 << 60),
        (("regions", 0, 0), True),
        (("regions", 0, 0), 30),
        (("regions", 0, 1), 3),
        (("regions", 0, 1), [4]),
        (("regions", 0, 2), []),
        (("regions", 0, 2, 0, 0), 0),
        (("regions", 0, 2, 0, 0), 4095),
        (("regions", 0, 2, 0, 0), END - 10),
        (("regions", 0, 2, 0, 0), 8100),
        (("regions", 0, 2, 0, 0), 8192),
        (("regions", 0, 2, 0, 1), "zzz"),
        (("regions", 0, 2, 0, 1), ["w"]),
        (("regions", 0, 2, 0, 2), [16, 7]),
        (("regions", 0, 2, 0, 2), [15, 7, 5]),
        (("regions", 0, 2, 0, 2), [16, 8, 5]),
        (("regions", 0, 2, 0, 2), [16, 0, 5]),
        (("regions", 0, 2, 0, 2), [16, 1 << 61, 5]),
        (("regions", 0, 2, 0, 3), "0" * 15),
        (("regions", 0, 2, 0, 3), "g" * 16),
        (("regions", 1, 2, 0, 2), [4]),
        (("tensors", 0, 0), 1),
        (("tensors", 0, 0), "v"),
        (("tensors", 0, 1), "float4"),
        (("tensors", 0, 1), "float64"),
        (("tensors", 0, 2), [2, 3]),
        (("tensors", 0, 2), [1] * 65),
        (("tensors", 0, 2), [-2, -2]),
        (("tensors", 0, 2), 4),
        (("tensors", 0, 4), 4),
        (("tensors", 0, 5), 20),
        (("tensors", 1, 3), [0, 0]),
        (("tensors", 1, 3), [-1, 2]),
        (("tensors", 1, 3), [2]),
        (("tensors", 0, 7), "1"),
        (("side_files",), []),
        (("side_files",), ["w"]),
        (("writer",), None),
        (("base",), None),
        (("base",), ["checkpoint_x_1.milepost", DIGEST]),
        (("base", 0), "../checkpoint_x_1.milepost"),
        (("base", 0), "folder\\checkpoint_x_1.milepost"),
        (("base", 0), ".milepost"),
        (("base", 0), "checkpoint_x_1.pt"),
        (("base", 0), 1),
        (("base", 1), "0" * 31),
        (("base", 2), -1),
        (("base", 2), "600"),
        (("regions", 0, 3), [1]),
        (("regions", 0, 3), "1"),
        (("regions", 2, 3), None),
        (("regions", 3, 3), None),
        (("regions", 2, 3, 0), -1),
        (("regions", 2, 3, 0), True),
        (("regions", 2, 3, 1), "3f8"),
        (("regions", 2, 2, 0, 1), "=wzr"),
        (("regions", 2, 2, 0, 1), "s"),
        (("regions", 2, 2, 0, 1), "ssz"),
        (("regions", 2, 2, 0, 1), "draw"),
        (("regions", 2, 2, 0, 2), [8, 4, 4]),
        (("regions", 3, 2, 0, 2), [16]),
        (("regions", 3, 2, 0), [16384, "szzzzzzzz", [1] * 8, CHECKSUM]),
        (("tensors", 1, 8), "float4"),
        (("tensors", 1, 8), 4),
    ],
)
def test_a_manifest_that_contradicts_itself_or_the_file_is_refused(path: tuple[Any, ...], value: Any) -> None:
    content = changed(path, value)
    if path == ("side_files",) and value == []:
        assert parse(content).side_files == ()  # then it is a tensor like others
        return
    with pytest.raises(CorruptDataError, match="the manifest"):
        parse(content)


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{", b"\xff", b'{"x": NaN}', b"[" * 100_000, b"9" * 5000])
def test_what_is_no_manifest_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptDataError, match="the manifest"):
        parse_manifest(text, first=FIRST, end=END)


def test_more_blocks_than_any_checkpoint_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.checkpoint.manifest._MOST_BLOCKS", 4)
    parse(sound())
    monkeypatch.setattr("milepost.checkpoint.manifest._MOST_BLOCKS", 3)
    with pytest.raises(CorruptDataError, match="more than 3 blocks"):
        parse(sound())


def test_a_manifest_too_long_for_the_memory_is_refused_unread() -> None:
    place = {"manifest_offset": 4096, "manifest_digest": bytes(16), "file_bytes": 1 << 40}
    largest = Trailer(manifest_bytes=LARGEST_MANIFEST, **place)
    assert Trailer.unpack(largest.pack(), 1 << 40) == largest
    longer = Trailer(manifest_bytes=LARGEST_MANIFEST + 1, **place)
    with pytest.raises(CorruptDataError, match="more than"):
        Trailer.unpack(longer.pack(), 1 << 40)


def test_few_bytes_cannot_stand_for_many_elements() -> None:
    assert span_of((1 << 40,), (0,), 4) is None
    assert span_of((3, 2), (2, 1), 4) == 24
    assert span_of((3, 2), (1, 3), 4) == 24
    assert span_of((0, 7), (9, 9), 4) == 0
    assert span_of((), None, 8) == 8
