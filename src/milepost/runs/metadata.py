"""What does ``metadata.json`` say, and how is a projection written as JSON?

**Invariants**: replaced whole, never edited in place. Strictly standard JSON: a number that is not finite is the text
``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.

**On crash**: the old content, or the new.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from milepost.io.durable import replace_file
from milepost.runs.layout import RunLayout

__all__ = ["as_json", "read_metadata", "write_metadata"]


def read_metadata(layout: RunLayout) -> dict[str, Any]:
    """``metadata.json`` as it stands; empty if it is absent or damaged."""
    try:
        content = json.loads(layout.metadata.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_metadata(layout: RunLayout, fields: Mapping[str, Any]) -> None:
    """Make ``metadata.json`` hold ``fields``.

    Raises:
        StorageError: The old content is untouched.
    """
    replace_file(layout.metadata, as_json(fields, indent=2))


def as_json(content: Any, *, indent: int | None = None) -> bytes:
    """``content`` as the bytes of a JSON file; what has no JSON form becomes text."""
    text = json.dumps(_standard(content), indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return (text + "\n").encode("utf-8", "replace")


def _standard(value: Any) -> Any:
    """``value`` with everything that JSON has no form for replaced by text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, Mapping):
        return {str(key): _standard(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_standard(item) for item in value]
    return value


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
