"""How does something to look at leave the training process with one copy of its bytes?

As a file of raw data in ``media/.staged``, which says itself what it is: another process encodes it, writes the result
below ``media``, records it, and only then removes the file. So the folder is the list of what is still to be done.

**Invariants**: a file appears whole, under a name that no other file has or had. Its name tells the rank that staged
it, and how old it is.

**On crash**: of the training process, what was staged is with the kernel. Of the machine, a file may be short: it names
its length, so that is seen.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from milepost.core.errors import CorruptDataError
from milepost.core.names import safe_name
from milepost.runs.layout import RunLayout

__all__ = ["Staged", "read_staged", "staged_by", "staged_names", "target_stem", "torn_media", "write_staged"]

Buffer = bytes | bytearray | memoryview

_LENGTHS = struct.Struct("<4sIQ")  # magic, length of the header, length of the data
_MAGIC = b"MPMD"
_NAME = re.compile(r"[0-9]{1,9}-[0-9a-f]{16}-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a staged file says of itself; the fields are those of :class:`milepost.core.events.MediaStaged`."""

    step: int
    name: str
    form: str
    caption: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def write_staged(folder: Path, rank: int, staged: Staged, data: Iterable[Buffer]) -> str:
    """Put ``data`` down for the encoder; the name of the file.

    Args:
        folder: ``media/.staged``; made if it is not there.
        rank: Of this training process: its own companion encodes what it stages.
        staged: What the data is.
        data: Raw bytes, in pieces that are written behind one another.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    pieces = [memoryview(piece).cast("B") for piece in data]
    fields = {"step": staged.step, "name": staged.name, "form": staged.form, "caption": staged.caption}
    header = json.dumps(fields | {"facts": staged.facts}).encode()
    lengths = _LENGTHS.pack(_MAGIC, len(header), sum(map(len, pieces)))
    name, file = _reserve(folder, rank)
    temporary = folder / f".{name}"
    try:
        with file:
            for piece in (memoryview(lengths + header), *pieces):
                _write_whole(file.write, piece)
        os.rename(temporary, folder / name)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    return name


def _write_whole(write: Callable[[memoryview], int], rest: memoryview) -> None:
    while rest:
        rest = rest[write(rest) :]


def _reserve(folder: Path, rank: int) -> tuple[str, FileIO]:
    """A name that nobody else has, and its file, open under the hidden name that it has until it is whole."""
    while True:
        name = f"{rank}-{time.time_ns():016x}-{secrets.token_hex(4)}"
        try:
            return name, FileIO(folder / f".{name}", "x")
        except FileExistsError:
            continue
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)


def staged_names(folder: Path) -> list[str]:
    """What is staged and whole, the oldest of each process first; empty where nothing was ever staged."""
    try:
        return sorted(
            (name for name in os.listdir(folder) if _NAME.fullmatch(name)), key=lambda name: name.split("-")[1:]
        )
    except OSError:
        return []


def torn_media(layout: RunLayout) -> list[Path]:
    """Files that a process was writing below ``media`` when it died; only for a run that nobody works on."""
    return [*layout.staged_media.glob(".*"), *layout.media.glob(".*.tmp")]


def staged_by(name: str) -> int:
    """The rank that staged the file ``name``."""
    return int(name.partition("-")[0])


def target_stem(staged: Staged, source: str) -> str:
    """Name of the encoded file without its ending: always the same for one staged file, and no other's."""
    _, when, who = source.split("-")
    return f"{safe_name(staged.name)}_{staged.step}-{when[-4:]}{who}"


def read_staged(path: Path) -> tuple[Staged, memoryview]:
    """What a staged file says of itself, and its data.

    Raises:
        CorruptDataError: It is no staged file, or is cut short.
        OSError: It cannot be read.
    """
    content = memoryview(path.read_bytes())
    try:
        magic, header, length = _LENGTHS.unpack_from(content)
        begin = _LENGTHS.size + header
        whole = magic == _MAGIC and len(content) == begin + length
        staged = Staged(**json.loads(bytes(content[_LENGTHS.size : begin])) if whole else {})
    except (struct.error, ValueError, TypeError) as error:
        raise CorruptDataError(f"{path.name} is cut short, or no staged file", cure="log it again") from error
    return staged, content[begin:]
