"""A forged file, whatever it claims and however right its checksums are, costs an error and little memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

from milepost.checkpoint.codec import BLOCK_BYTES
from milepost.checkpoint.envelope import LARGEST_MANIFEST
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError, NotFoundError
from tests.unit.checkpoint import forged_files as forged
from tests.unit.checkpoint.container_samples import save

_LITTLE = 24 << 20
ARRAY = np.arange(1000, dtype=np.float32)


def read(path: Path) -> None:
    with open_checkpoint(path) as file:
        file.read_all()
        file.verify()


def refused(path: Path, match: str, error: type[Exception] = CorruptDataError) -> None:
    """Reading all of it gives this error, and never took much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < _LITTLE
    finally:
        tracemalloc.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint_1.milepost", {"w": ARRAY}, compression=False)


def row_of(content: dict[str, Any]) -> list[Any]:
    row: list[Any] = content["tensors"][0]
    return row


def region_of(content: dict[str, Any]) -> list[Any]:
    row: list[Any] = content["regions"][0]
    return row


def tensor_with(index: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: row_of(content).__setitem__(index, value)


def block_with(index: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: region_of(content)[2][0].__setitem__(index, value)


def second_block(content: dict[str, Any]) -> None:
    """Another region whose block lies inside of the first one's."""
    nbytes, width, [block], base = region_of(content)
    content["regions"].append([nbytes, width, [[block[0] + 64, *block[1:]]], base])


def large_tensor(content: dict[str, Any]) -> None:
    row_of(content)[2:7] = [[1 << 40], None, 0, 0, 1 << 42]


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "two blocks in one place": (second_block, "inside another block"),
    "a block in the header": (block_with(0, 0), "beside the room"),
    "a block behind the manifest": (block_with(0, 1 << 40), "beside the room"),
    "a block at a negative place": (block_with(0, -4096), "-4096"),
    "a block beyond all numbers": (block_with(0, 1 << 70), str(1 << 70)),
    "a length as a float": (block_with(0, 4096.0), "4096.0"),
    "lanes without end": (block_with(2, [1] * 1000), "1000 lanes"),
    "an encoding without end": (block_with(1, "r" * 100_000), "encoded as"),
    "a region without its blocks": (lambda c: region_of(c).__setitem__(0, 1 << 60), "0 blocks|1 blocks"),
    "a region of odd width": (lambda c: region_of(c).__setitem__(1, 3), "width 3"),
    "a tensor larger than its region": (large_tensor, "outside"),
    "a tensor behind its region": (tensor_with(5, 1 << 40), "outside"),
    "a tensor of no region": (tensor_with(4, 7), "outside"),
    "a stride of 0": (lambda c: row_of(c).__setitem__(slice(2, 7), [[1 << 50], [0], 0, 0, 4]), "in 4 bytes"),
    "a negative stride": (tensor_with(3, [-1]), "-1"),
    "a stride that folds": (lambda c: row_of(c).__setitem__(slice(2, 4), [[40, 1000], [0, 1]]), "in 4000 bytes"),
    "a negative dimension": (tensor_with(2, [-1000]), "-1000"),
    "a dimension beyond all numbers": (tensor_with(2, [1 << 63]), str(1 << 63)),
    "a product beyond all numbers": (tensor_with(2, [1 << 60] * 64), "of shape"),
    "more dimensions than any array": (tensor_with(2, [1] * 65), "65 dimensions"),
    "a dtype that is code": (tensor_with(1, "object"), "unknown dtype"),
    "an original dtype that is code": (tensor_with(8, "__import__('os')"), "unknown dtype"),
    "a digest that is none": (tensor_with(7, "g" * 32), "for a digest"),
    "two tensors of one name": (lambda c: c["tensors"].append(row_of(c)), "two tensors named 'w'"),
    "side files that are not there": (lambda c: c.update(side_files=["side_files/x"]), "side files"),
    "rows without end": (lambda c: row_of(c).extend([0] * 1000), "1009 values"),
    "blocks of another size": (lambda c: c.update(block_bytes=1 << 50), str(1 << 50)),
    "a difference to nothing": (block_with(1, "dww"), "lanes|to nothing"),
    "a base that is not named": (lambda c: region_of(c).__setitem__(3, [0, "00000000"]), "names no base"),
    "no tensors at all": (lambda c: c.pop("tensors"), "for tensors"),
    "facts that are none": (lambda c: c.update(run=[1]), "facts"),
    "facts of a wrong kind": (lambda c: c.update(run={"dict": ["experiment_id", 1, "step", "x"]}), "facts"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_impossible_manifest_is_refused(path: Path, name: str) -> None:
    edit, match = EDITS[name]
    refused(forged.change(path, edit), match)


@pytest.mark.parametrize(
    "name",
    [
        "../checkpoint_2.milepost",
        "..\\checkpoint_2.milepost",
        "/etc/checkpoint_2.milepost",
        "C:checkpoint_2.milepost",
        "folder/checkpoint_2.milepost",
        "checkpoint\0.milepost",
        "checkpoint\n.milepost",
        ".hidden.milepost",
        "..",
        "",
        "x" * 300 + ".milepost",
        "/proc/self/fd/0",
    ],
)
def test_a_base_outside_of_the_folder_is_refused_when_the_file_is_opened(path: Path, name: str) -> None:
    refused(forged.change(path, lambda content: content.update(base=[name, "0" * 32, 1])), "as its base|no name")


def test_a_base_that_is_no_checkpoint_is_refused(path: Path, tmp_path: Path) -> None:
    def refer(content: dict[str, Any]) -> None:
        content["base"] = ["checkpoint_2.milepost", "0" * 32, 1]
        region_of(content)[2:] = [[[0, "=", [], xxhash.xxh3_64_hexdigest(b"")]], [0, "00000000"]]

    forged.change(path, refer)
    refused(path, "checkpoint_2.milepost", NotFoundError)
    base = tmp_path / "checkpoint_2.milepost"
    base.mkdir()
    refused(path, "it is no file")
    base.rmdir()
    base.write_bytes(bytes(10_000))
    refused(path, "does not begin like a checkpoint")
    base.unlink()
    base.symlink_to("/dev/zero")
    refused(path, "it is no file")


def test_a_file_that_names_itself_as_its_base_is_refused(path: Path) -> None:
    def refer(content: dict[str, Any]) -> None:
        content["base"] = [path.name, "0" * 32, 1]
        region_of(content)[2:] = [[[0, "=", [], xxhash.xxh3_64_hexdigest(b"")]], [0, "00000000"]]

    refused(forged.change(path, refer), "is not the file that it was")


def plane(content: bytes, size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(content.ljust(size, b"\0"))


def forged_frame(declared: int) -> bytes:
    """A frame with a content size of the attacker's choice."""
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, declared) + b"\x03\x00\x00" + b"a"


FRAMES = {
    "more than it should give": plane(b"", BLOCK_BYTES),
    "a terabyte declared": forged_frame(1 << 40),
    "all that a number can say": forged_frame((1 << 64) - 1),
    "less than it should give": plane(b"", 999),
    "no size declared": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)),
    "a lie: much more behind the size": forged_frame(1000),
    "a window of a gigabyte": struct.pack("<IBBI", 0xFD2FB528, 0x80, 20 << 3, 1000) + b"\x01\x00\x00",
    "nothing that is zstd": b"\x00" * 40,
    "a second frame": plane(b"", 1000) + plane(b"", 1000),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_gives_exactly_its_plane_or_nothing(tmp_path: Path, name: str) -> None:
    content = np.zeros(1000, np.uint8)
    row, stored = forged.block_row(4096, "z", [FRAMES[name]])
    tensor = forged.tensor_row("w", content, 0)
    tensor[7] = "0" * 32
    described = forged.manifest(tensors=[tensor], regions=[[1000, 1, [row], None]])
    refused(forged.write(tmp_path / "checkpoint_1.milepost", described, stored), "'w' is damaged|bytes for 1000 bytes")


TEXTS = {
    "lists in lists": b"[" * 2_000_000,
    "objects in objects": b'{"a":' * 500_000,
    "no JSON": b"\xff\xfe",
    "a number without end": b'{"block_bytes": ' + b"9" * 1_000_000 + b"}",
    "not a number": b'{"block_bytes": NaN}',
    "infinity": b'{"block_bytes": -Infinity}',
    "another kind": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_manifest_is_refused(tmp_path: Path, name: str) -> None:
    refused(forged.write(tmp_path / "checkpoint_1.milepost", TEXTS[name]), "the manifest")


def test_a_member_that_is_there_twice_is_refused(path: Path) -> None:
    """Two programs could read two different files out of it."""
    content, blocks = forged.parts(path)
    text = json.dumps(content).encode()
    refused(forged.write(path, b'{"tensors": [], ' + text[1:], blocks), "'tensors' twice")


def nested(depth: int) -> Any:
    node: Any = 1
    for _ in range(depth):
        node = {"tuple": [node]}
    return node


def test_facts_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    refused(forged.write(tmp_path / "checkpoint_1.milepost", forged.manifest(run=nested(200))), "nested too deeply")


def test_a_manifest_that_claims_a_terabyte_is_not_read(path: Path) -> None:
    """The file is that long, by a hole that takes no room on the disk."""
    length, total = 1 << 40, (1 << 40) + 8192
    trailer = struct.pack("<8sI4xQQ16sQ", forged.MAGIC, 1, 4096, length, bytes(16), total)
    with open(path, "r+b") as file:
        file.truncate(total)
        file.seek(total - 64)
        file.write(trailer + struct.pack("<Q", xxhash.xxh3_64_intdigest(trailer)))
    assert length > LARGEST_MANIFEST
    refused(path, "more than")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\\b", "x\0", "", "/etc/passwd"])
def test_an_embedded_file_that_would_leave_its_folder_is_refused(path: Path, name: str) -> None:
    def embed(content: dict[str, Any]) -> None:
        row_of(content)[0] = f"side_files/{name}"
        content["side_files"] = [f"side_files/{name}"]

    refused(forged.change(path, embed), "side file")
