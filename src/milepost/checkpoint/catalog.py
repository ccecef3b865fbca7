"""Which checkpoints are in a folder?

The files themselves say so; ``checkpoints.json`` is a projection of them for people and for fast listing. An entry is
used again while name, size and modification time of its file are as they were, else the file's manifest is read.
Files of foreign formats describe themselves in a small file beside them, ``.<filename>.json``.

**Invariants**: deleting or damaging ``checkpoints.json`` loses nothing; it is rebuilt to the same content. That a file
was verified is kept with the file, in an extended attribute, and ends when the file changes. (Where the file system has
none it is kept in ``checkpoints.json`` alone; a rebuilt one counts the files as not verified, which removes nothing.)

**On crash**: the old ``checkpoints.json`` or the new one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError, MilepostError
from milepost.core.records import CheckpointInfo
from milepost.core.saying import logger
from milepost.io.durable import replace_file
from milepost.io.locks import exclusive

__all__ = [
    "CATALOG",
    "Damaged",
    "Scan",
    "mark_verified",
    "pin_mark_of",
    "refresh",
    "scan",
    "sidecar_of",
    "text_of",
]

CATALOG = "checkpoints.json"
_LOCK = ".checkpoints.lock"
_LOCK_TIMEOUT = 10.0
_NATIVE = ".milepost"
_FOREIGN = (".pt", ".pt.gz", ".safetensors")
_VERIFIED = "user.milepost.verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A file that looks like a checkpoint and cannot be read.

    Attributes:
        path: The file.
        error: What is wrong with it.
        info: What was known of it before it was damaged; None if nothing tells.
        modified: Its modification time, seconds since 1970.
    """

    path: Path
    error: MilepostError
    info: CheckpointInfo | None = None
    modified: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is in a folder: checkpoints by step, and files that are damaged."""

    infos: tuple[CheckpointInfo, ...] = ()
    damaged: tuple[Damaged, ...] = ()


def sidecar_of(path: Path) -> Path:
    """The small file that describes a checkpoint of a foreign format."""
    return path.with_name(f".{path.name}.json")


def pin_mark_of(path: Path) -> Path:
    """The empty file that pins a checkpoint which was not saved with ``pin=True``."""
    return path.with_name(f".{path.name}.pinned")


def scan(folder: Path) -> Scan:
    """List ``folder`` without writing anything; empty if it does not exist."""
    return _scan(folder, _known_entries(folder), frozenset())


def refresh(folder: Path, *, verified: Collection[str] = ()) -> Scan:
    """List ``folder`` and bring ``checkpoints.json`` up to date.

    Args:
        folder: Must exist.
        verified: Names of files that were read back since.

    Returns:
        What is there, also if ``checkpoints.json`` could not be written: it is only a projection.
    """
    try:
        with exclusive(folder / _LOCK, _LOCK_TIMEOUT):
            known = _known_entries(folder)
            found = _scan(folder, known, frozenset(verified))
            entries = _as_entries(found.infos)
            if _finite(entries) != list(known.values()) or not (folder / CATALOG).exists():
                replace_file(folder / CATALOG, text_of({"format": 0, "checkpoints": entries}).encode())
            return found
    except MilepostError as error:
        logger.warning("%s was not brought up to date: %s", folder / CATALOG, error)
        return _scan(folder, _known_entries(folder), frozenset(verified))


def mark_verified(path: Path) -> None:
    """Note at the file itself that it was read back whole."""
    with suppress(OSError, AttributeError):
        os.setxattr(path, _VERIFIED, _mark(path.stat()))


def _is_marked(path: Path, status: os.stat_result) -> bool:
    try:
        return os.getxattr(path, _VERIFIED) == _mark(status)
    except (OSError, AttributeError):
        return False


def _mark(status: os.stat_result) -> bytes:
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _known_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of ``checkpoints.json`` by file name; none if it is absent, damaged, or of another shape."""
    try:
        content = json.loads((folder / CATALOG).read_bytes())
        return {entry["filename"]: entry for entry in content["checkpoints"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _scan(folder: Path, known: Mapping[str, dict[str, Any]], verified: Collection[str]) -> Scan:
    infos, damaged = [], []
    for path in _candidates(folder):
        try:
            status = path.stat()
            info = _described(path, status, known.get(path.name))
        except FileNotFoundError:
            continue  # retention of another process was faster
        except (CorruptDataError, OSError) as error:
            damaged.append(_damaged(path, error, known.get(path.name)))
            continue
        if path.name in verified or _is_marked(path, status):
            info = replace(info, verified=True)
        if not info.pinned and pin_mark_of(path).exists():
            info = replace(info, pinned=True)
        infos.append(info)
    infos.sort(key=lambda info: (info.step, info.timestamp, info.filename))
    return Scan(infos=tuple(infos), damaged=tuple(damaged))


def _damaged(path: Path, error: Exception, entry: Mapping[str, Any] | None) -> Damaged:
    if not isinstance(error, MilepostError):
        error = CorruptDataError(f"{path} cannot be read ({error})", cure="use another checkpoint")
    info = None
    with suppress(KeyError, TypeError):
        info = _from_entry(entry or {}, path)
    modified = path.stat().st_mtime if path.exists() else 0.0
    return Damaged(path=path, error=error, info=info, modified=modified)


def _from_entry(entry: Mapping[str, Any], path: Path) -> CheckpointInfo:
    return CheckpointInfo.from_fields({**entry, "path": path, "metrics": _numbers(entry.get("metrics", {}))})


def _candidates(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if name.startswith("."):
            continue
        if name.endswith(_NATIVE) or (name.endswith(_FOREIGN) and sidecar_of(folder / name).exists()):
            yield folder / name


def _described(path: Path, status: os.stat_result, entry: Mapping[str, Any] | None) -> CheckpointInfo:
    if entry is not None and (entry.get("size"), entry.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        with suppress(KeyError, TypeError):
            info = _from_entry(entry, path)
            return replace(info, pinned=False) if entry.get("pin_mark") else info  # the mark may be gone since
    if path.name.endswith(_NATIVE):
        with open_checkpoint(path) as file:
            info = file.info
    else:
        info = _from_sidecar(path)
    return replace(info, filename=path.name, path=path, size=status.st_size, verified=False)


def _from_sidecar(path: Path) -> CheckpointInfo:
    try:
        return _from_entry(json.loads(sidecar_of(path).read_bytes()), path)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            f"{sidecar_of(path)} does not describe a checkpoint ({error})", cure="load the file by its path"
        ) from None


def _as_entries(infos: Collection[CheckpointInfo]) -> list[dict[str, Any]]:
    entries = []
    for info in infos:
        entry = info.to_fields() | {"mtime_ns": info.path.stat().st_mtime_ns}
        if info.pinned and pin_mark_of(info.path).exists():
            entry["pin_mark"] = True  # the file itself does not say that it is pinned
        del entry["path"]  # the folder may move
        entries.append(entry)
    return entries


_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def text_of(content: dict[str, Any]) -> str:
    """JSON for people and programs; it has no word for a number that is not finite, so those become texts."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
