"""A reader of the checkpoint container that was written from ``docs/format.md`` alone.

It shares no line with milepost, so that what it reads shows that the document is enough.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

BLOCK = 2 << 20
NUMPY = {"bfloat16": "<u2", "complex32": "<u4", "bool": "?"}


class SecondReader:
    """One open file; ``tensor(name)`` gives an array, unsigned where NumPy lacks the dtype."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        start, length, digest, total = self._trailer()
        text = self.data[start : start + length]
        assert total == len(self.data)
        assert xxhash.xxh3_128_digest(text) == digest
        self.digest = digest.hex()
        self.manifest: dict[str, Any] = json.loads(text)
        self.tensors = {row[0]: row for row in self.manifest["tensors"]}
        self.base: SecondReader | None = None
        if self.manifest["base"] is not None:
            name, digest_of_base, _ = self.manifest["base"]
            self.base = SecondReader(path.parent / name)
            assert self.base.digest == digest_of_base
            assert self.base.base is None

    def _trailer(self) -> tuple[int, int, bytes, int]:
        for end in (self.data[:64], self.data[-64:]):
            magic, version, checksum = *struct.unpack_from("<8sI", end), struct.unpack("<Q", end[56:])[0]
            assert (magic, version) == (b"\x89MPCKPT\n", 1)
            assert xxhash.xxh3_64_intdigest(end[:56]) == checksum
        start, length, digest, total = struct.unpack("<QQ16sQ", self.data[-48:-8])
        return start, length, digest, total

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """The values of one tensor."""
        _, dtype, shape, stride, region, offset, nbytes, digest, _ = self.tensors[name]
        count = len(self.manifest["regions"][region][2])
        content = b"".join(self.block(region, i) for i in range(count))[offset : offset + nbytes]
        assert xxhash.xxh3_128_hexdigest(content) == digest
        numpy = NUMPY.get(dtype, "<u1" if dtype.startswith(("float8", "float4")) else dtype)
        values = np.frombuffer(content, np.dtype(numpy))
        if stride is None or not values.size:
            return values.reshape(shape)
        return np.lib.stride_tricks.as_strided(values, shape, [step * values.itemsize for step in stride])

    def block(self, region: int, index: int) -> bytes:
        """One decoded block."""
        nbytes, width, blocks, base = self.manifest["regions"][region]
        offset, encoding, lanes, checksum = blocks[index]
        size = min(BLOCK, nbytes - index * BLOCK)
        places = [0]
        for length in lanes[:-1]:
            places.append(places[-1] + -(-length // 64) * 64)
        stored = self.data[offset : offset + places[-1] + lanes[-1]] if lanes else b""
        assert xxhash.xxh3_64_hexdigest(stored) == checksum
        if encoding == "raw":
            return stored
        before = self.base.block(base[0], index) if base is not None and self.base is not None else b""
        if encoding == "=":
            return before
        letters = encoding.lstrip("ds")
        planes = np.zeros((size // width, width), np.uint8)
        byte = 0
        for letter, place, length in zip(letters, places, lanes, strict=True):
            lane, span = stored[place : place + length], 2 if letter == "w" else 1
            content = zstandard.ZstdDecompressor().decompress(lane) if letter == "z" else lane
            planes[:, byte : byte + span] = np.frombuffer(content, np.uint8).reshape(-1, span)
            byte += span
        return self._added(encoding[0], planes.tobytes(), before, width, base)

    @staticmethod
    def _added(kind: str, planes: bytes, before: bytes, width: int, base: list[Any] | None) -> bytes:
        z = np.frombuffer(planes, f"<u{width}")
        if kind == "d":
            return bytes((np.frombuffer(before, z.dtype) + ((z >> 1) ^ (0 - (z & 1)))).tobytes())
        if kind == "s" and base is not None:
            scale = np.frombuffer(bytes.fromhex(base[1]), ">f4").astype("<f4")
            return bytes((z + (np.frombuffer(before, "<f4") * scale).view("<u4")).tobytes())
        return planes
