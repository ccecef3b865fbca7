"""Is a ``.pt`` file the plain zip that torch writes, and nothing that two readers would understand in two ways?

torch writes its files uncompressed, one entry behind the other, all in one folder. Whatever else a zip can be (entries
that are compressed, hidden, doubled, encrypted, inside one another, or called differently in their own header than in
the directory) serves to show a scanner one content and a loader another, or to fill the memory.

**Invariant**: a file that passes holds what its directory lists, under these names, in at most its own length.
"""

from __future__ import annotations

import os
import struct
import zipfile
from typing import BinaryIO

__all__ = ["ZipAnomalyError", "check_zip"]

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_ENCRYPTED = 0x1
_MOST_ENTRIES = 1_000_000


class ZipAnomalyError(ValueError):
    """What no file that torch wrote has."""


def check_zip(file: BinaryIO) -> None:
    """Look at the directory and at the header of each entry; the position in the file is kept.

    Raises:
        ZipAnomalyError: It is a zip that torch would not have written.
    """
    start = file.tell()
    try:
        _check(file)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ZipAnomalyError(f"its directory cannot be read ({error})") from None
    finally:
        file.seek(start)


def _check(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    entries = sorted(zipfile.ZipFile(file).infolist(), key=lambda entry: entry.header_offset)
    if not 0 < len(entries) <= _MOST_ENTRIES:
        raise ZipAnomalyError(f"it has {len(entries)} entries")
    folders = {entry.filename.partition("/")[0] for entry in entries}
    names = [entry.filename.casefold() for entry in entries]
    if len(folders) != 1 or len(set(names)) != len(names):
        raise ZipAnomalyError("its entries lie in several folders, or two have the same name")
    end = 0
    for entry in entries:
        if entry.header_offset < end:
            raise ZipAnomalyError(f"the entry {entry.filename!r} lies inside of another one")
        end = _end_of(file, entry)
        if end > size:
            raise ZipAnomalyError(f"the entry {entry.filename!r} ends behind the file")
    if entries[0].header_offset:
        raise ZipAnomalyError(f"{entries[0].header_offset} bytes lie before its first entry")


def _end_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the content of ``entry`` ends, after its own header was found to say what the directory says."""
    parts = entry.filename.split("/")
    if ".." in parts or "" in parts or "\\" in entry.filename or "\x00" in entry.orig_filename:
        raise ZipAnomalyError(f"an entry is called {entry.filename!r}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ZipAnomalyError(f"the entry {entry.filename!r} is compressed")
    file.seek(entry.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    magic, flags, method, name_length, more_length = (header[place] for place in (0, 2, 3, 9, 10))
    name = file.read(name_length)
    if magic != _LOCAL_MAGIC or method != zipfile.ZIP_STORED or (flags | entry.flag_bits) & _ENCRYPTED:
        raise ZipAnomalyError(f"the header of {entry.filename!r} is none that torch writes")
    if name != entry.orig_filename.encode("utf-8"):
        raise ZipAnomalyError(f"the entry {entry.filename!r} calls itself {name!r:.80}")
    return entry.header_offset + _LOCAL_HEADER.size + int(name_length) + int(more_length) + entry.compress_size
