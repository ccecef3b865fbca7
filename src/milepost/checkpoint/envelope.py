"""How is a file known as a checkpoint, and where is its manifest?

A header and a trailer of 64 bytes each, each under its own checksum. The trailer is written last and ends the file, so
a file that was cut anywhere has none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from milepost.core.errors import CorruptDataError
from milepost.io.direct import ALIGNMENT

__all__ = ["FIRST_BLOCK", "HEADER_BYTES", "LARGEST_MANIFEST", "TRAILER_BYTES", "Trailer", "check_header", "header"]

HEADER_BYTES = 64
TRAILER_BYTES = 64
FIRST_BLOCK = ALIGNMENT

#: Bytes of a manifest that a reader takes into memory: more than 4 million blocks need.
LARGEST_MANIFEST = 256 << 20

_MAGIC = b"\x89MPCKPT\n"
_VERSION = 1
_HEADER = struct.Struct("<8sI44x")
_TRAILER = struct.Struct("<8sI4xQQ16sQ")
_CHECKSUM = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """The end of a file, which says where the rest is.

    Attributes:
        manifest_offset: Of the manifest; no block lies behind it.
        manifest_bytes: Its length.
        manifest_digest: Its xxh3_128.
        file_bytes: Length of the whole file.
    """

    manifest_offset: int
    manifest_bytes: int
    manifest_digest: bytes
    file_bytes: int

    def pack(self) -> bytes:
        """Its 64 bytes."""
        place = self.manifest_offset, self.manifest_bytes, self.manifest_digest, self.file_bytes
        return _sealed(_TRAILER.pack(_MAGIC, _VERSION, *place))

    @classmethod
    def unpack(cls, data: bytes, file_bytes: int) -> Trailer:
        """The trailer of a file of ``file_bytes``.

        Raises:
            CorruptDataError: It is none, or contradicts the file.
        """
        _check_seal(data, "trailer")
        _, _, offset, length, digest, total = _TRAILER.unpack_from(data)
        if total != file_bytes or offset < FIRST_BLOCK or offset + length > file_bytes - TRAILER_BYTES:
            raise _damaged(f"the trailer speaks of {total} bytes and a manifest at {offset}, {length} bytes long")
        if length > LARGEST_MANIFEST:
            raise _damaged(f"the manifest has {length} bytes, more than {LARGEST_MANIFEST}")
        return cls(manifest_offset=offset, manifest_bytes=length, manifest_digest=digest, file_bytes=total)


def header() -> bytes:
    """The 64 bytes at the start of every checkpoint."""
    return _sealed(_HEADER.pack(_MAGIC, _VERSION))


def check_header(data: bytes) -> None:
    """Refuse a file that is no checkpoint, or one of a later version.

    Raises:
        CorruptDataError: ``kind`` is ``"unknown-version"`` for a sound file that this version cannot read.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise _damaged("the file does not begin like a checkpoint")
    _check_seal(data, "header")


def _sealed(body: bytes) -> bytes:
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def _check_seal(data: bytes, part: str) -> None:
    body, (checksum,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    magic, version_number = struct.unpack_from("<8sI", body)
    if magic != _MAGIC or xxhash.xxh3_64_intdigest(body) != checksum:
        raise _damaged(f"the {part} is damaged or missing")
    if version_number != _VERSION:
        what = f"the file has format version {version_number}, this milepost reads {_VERSION}"
        raise CorruptDataError(what, cure="install a newer milepost", kind="unknown-version")


def _damaged(what: str) -> CorruptDataError:
    return CorruptDataError(what, cure="load another checkpoint")
