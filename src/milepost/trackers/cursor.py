"""Up to where has a guest taken the run?

One JSON file per run and guest, replaced after every flush that the guest acknowledged.

**Invariants**: the file never claims more than the guest acknowledged; it is complete or absent.

**On crash**: the guest gets again what came after the last replacement. The file is not fsynced: after a power loss it
may be old, absent or damaged, and each of these only means that more is told again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Cursor", "load_cursor", "save_cursor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """``position`` is the feed's, ``guest`` what the guest's flush returned, ``closed`` whether it was told the end.

    ``records`` counts what was told of the log, from its first record.
    """

    position: Mapping[str, Any] = field(default_factory=dict)
    guest: Mapping[str, Any] = field(default_factory=dict)
    closed: bool = False
    records: int = 0


def load_cursor(path: Path) -> Cursor:
    """The saved cursor, or an empty one if there is none that can be read."""
    try:
        plain = json.loads(path.read_bytes())
        position, guest = plain["position"], plain["guest"]
    except (OSError, ValueError, KeyError, TypeError):
        return Cursor()
    if not (isinstance(position, dict) and isinstance(guest, dict)):
        return Cursor()
    return Cursor(position=position, guest=guest, closed=bool(plain.get("closed")), records=plain.get("records", 0))


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Replace the saved cursor.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = {"position": cursor.position, "guest": cursor.guest, "closed": cursor.closed, "records": cursor.records}
    temporary.write_text(json.dumps(plain), encoding="utf-8")
    temporary.replace(path)
