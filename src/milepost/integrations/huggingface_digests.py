"""What did a folder of Trainer hold when it was written?

safetensors files and texts have no checksum of their own. A small file beside them keeps length, time and digest of
every file of a complete folder.

**Invariants**: a digest accuses only a file that was not written since: its time must be the one that was kept.

**On crash**: the digests appear in one rename, after every file was synced. A folder without them is looked at as if
milepost had never seen it.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from milepost.core.errors import CorruptDataError, MilepostError, NotFoundError, StorageError
from milepost.io.durable import replace_file, storage_error

__all__ = ["DIGESTS", "STATE_FILE", "damaged", "keep_digests", "proven", "read_json"]

STATE_FILE = "trainer_state.json"
DIGESTS = "milepost-digests.json"

_PIECE = 8 << 20
_LARGEST_TEXT = 1 << 30


def keep_digests(folder: Path) -> None:
    """Bring the files of a complete folder to the disk, and write down what each of them holds.

    Raises:
        NotFoundError: The folder was removed meanwhile.
        StorageError: The disk refuses.
    """
    try:
        times = folder.stat()
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS]
        kept = {path.relative_to(folder).as_posix(): _description(path, sync=True) for path in files}
        replace_file(folder / DIGESTS, json.dumps({"format": 1, "files": kept}, indent=1).encode())
        os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))  # by which Trainer knows the newest folder
        if not (folder / STATE_FILE).is_file():  # Trainer removes the folder, and must find it empty
            (folder / DIGESTS).unlink()
            folder.rmdir()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} was removed", cure="keep more checkpoints") from None
    except OSError as error:
        if isinstance(error, StorageError) and error.errno == errno.ENOENT:
            raise NotFoundError(f"{folder} was removed", cure="keep more checkpoints") from None
        raise error if isinstance(error, StorageError) else storage_error(error, "reading", folder) from error


def _description(path: Path, *, sync: bool = False) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        status = os.fstat(file.fileno())
        while piece := file.read(_PIECE):
            digest.update(piece)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "xxh3_128": digest.hexdigest()}


def proven(folder: Path, name: str, path: Path) -> bool:
    """Whether the file has the digest that was written down for it.

    Raises:
        CorruptDataError: It has not, and was not written since.
    """
    kept = _kept(folder).get(name)
    if not isinstance(kept, dict):
        return False
    found = _description(path)
    if found["xxh3_128"] == kept.get("xxh3_128"):
        return True
    if found["mtime_ns"] == kept.get("mtime_ns"):
        raise damaged(path, "its digest is not the one taken when it was written")
    return False


def _kept(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError, CorruptDataError):
        return dict(read_json(folder / DIGESTS)["files"])
    return {}


def read_json(path: Path) -> Any:
    """What a text of JSON says.

    Raises:
        CorruptDataError: It is none.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise damaged(path, "it is larger than any text of Trainer")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, MilepostError):
            raise
        raise damaged(path, f"it is no JSON ({error})") from None


def damaged(path: Path, what: str) -> CorruptDataError:
    """The error about a file that is not what was written."""
    return CorruptDataError(f"{path.name} is damaged: {what}", cure="use another checkpoint")
