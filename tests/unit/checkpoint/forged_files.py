"""Files that no writer would make, but whose every checksum is right: what an attacker, or another program, can do."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from milepost.checkpoint.codec import BLOCK_BYTES

MAGIC = b"\x89MPCKPT\n"
PAGE = 4096

FACTS: dict[str, Any] = {
    "dict": [
        *("experiment_id", "forged", "step", 7, "epoch", None, "metrics", {"dict": []}, "is_best", False),
        *("pinned", False, "timestamp", {"float": "0x0p+0"}, "stall_ms", 0, "wait_ms", 0, "attempt", 1),
        *("contents", {"tuple": []}, "include", "all", "lossy", ""),
    ]
}


def manifest(**members: Any) -> dict[str, Any]:
    """A manifest without tensors, but for the members given."""
    empty = {
        "format": "milepost checkpoint",
        "block_bytes": BLOCK_BYTES,
        "writer": {},
        "run": FACTS,
        "base": None,
        "side_files": [],
        "tensors": [],
        "regions": [],
        "tree": {"dict": []},
    }
    return empty | members


def write(path: Path, content: dict[str, Any] | bytes, blocks: bytes = b"") -> Path:
    """Write a container around a manifest and the bytes that lie from offset 4096 on."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    header = _sealed(struct.pack("<8sI44x", MAGIC, 1))
    body = header.ljust(PAGE, b"\0") + blocks
    start = -(-len(body) // PAGE) * PAGE
    total = start + -(-(len(text) + 64) // PAGE) * PAGE
    trailer = struct.pack("<8sI4xQQ16sQ", MAGIC, 1, start, len(text), xxhash.xxh3_128_digest(text), total)
    whole = body.ljust(start, b"\0") + text
    path.write_bytes(whole.ljust(total - 64, b"\0") + _sealed(trailer))
    return path


def change(path: Path, edit: Callable[[dict[str, Any]], None], target: Path | None = None) -> Path:
    """Rewrite a file with its manifest changed and all checksums of it right again."""
    content, blocks = parts(path)
    edit(content)
    return write(target or path, content, blocks)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest of a file, and the bytes between header and manifest."""
    content = path.read_bytes()
    _, _, start, length, _, _ = struct.unpack_from("<8sI4xQQ16sQ", content, len(content) - 64)
    return json.loads(content[start : start + length]), content[PAGE:start]


def digest_of_manifest(path: Path) -> str:
    """xxh3_128 of a file's manifest in hexadecimal digits: what a file of differences knows its base by."""
    return path.read_bytes()[-64:][32:48].hex()


def tensor_row(name: str, array: np.ndarray[Any, Any], region: int, offset: int = 0) -> list[Any]:
    """A row of a contiguous array."""
    digest = xxhash.xxh3_128_hexdigest(array.tobytes())
    return [name, array.dtype.name, list(array.shape), None, region, offset, array.nbytes, digest, None]


def block_row(offset: int, encoding: str, lanes: list[bytes]) -> tuple[list[Any], bytes]:
    """A row of a block and its stored bytes, lanes at multiples of 64."""
    padded = [lane.ljust(-(-len(lane) // 64) * 64, b"\0") for lane in lanes[:-1]]
    stored = b"".join([*padded, *lanes[-1:]])
    return [offset, encoding, [len(lane) for lane in lanes], xxhash.xxh3_64_hexdigest(stored)], stored


def _sealed(body: bytes) -> bytes:
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
