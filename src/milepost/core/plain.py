"""What of a user's value can JSON hold?

Settings and summaries come as anything: NumPy scalars, enums, paths, dataclasses. They are kept as plain values, and
what has no plain form as its text, because a start must not fail over an odd setting.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

__all__ = ["plain"]

_DEEPEST = 20
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` as None, bool, int of 64 bits, finite float, str, list and dict of them."""
    if depth < _DEEPEST:
        if is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name, None) for field in fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner, depth + 1) for inner in value]
        if isinstance(value, (set, frozenset)):
            # The order of a set differs from process to process, and the same settings must be the same run.
            return sorted((plain(inner, depth + 1) for inner in value), key=json.dumps)
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    match value:
        case Enum():
            return value.name
        case None | bool() | str():
            return value
        case int() if -(2**63) <= value < 2**64:
            return value
        case float() if math.isfinite(value):
            return value
        case dt.date():
            return value.isoformat()
        case _:
            return _text_of(value)


def _text_of(value: object) -> str:
    """Its text without the address in memory, which differs from process to process."""
    try:
        return _ADDRESS.sub("", str(value))
    except Exception:  # noqa: BLE001 - somebody else's __str__
        return type(value).__name__
