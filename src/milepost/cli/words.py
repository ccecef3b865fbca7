"""How is a state, an age, a size or a foreign name said in a terminal?

**Invariants**: a state is never shown by colour alone; no text that came from a file can move the cursor, colour the
terminal, reorder the line or be taken for markup.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["age", "count", "number", "plain", "size", "state_word", "styled_state"]


class _Look(NamedTuple):
    symbol: str
    style: str


_LOOKS = {
    "running": _Look("●", "green"),
    "completed": _Look("✓", "green"),
    "failed": _Look("✗", "red"),
    "stopped": _Look("■", "yellow"),
    "killed": _Look("■", "red"),
    "paused": _Look("⏸", "blue"),
    "preempted": _Look("⏸", "yellow"),
    "unsure": _Look("?", "magenta"),
}
_UNKNOWN = _Look("?", "magenta")

# Controls of both sets, line separators, what reverses the reading direction, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def plain(text: object) -> str:
    r"""``text`` on one line, with everything that a terminal would obey written out: ``\x1b``."""
    return _UNPRINTABLE.sub(_written_out, str(text))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(match[0]) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    )


def state_word(status: str, cause: str = "") -> str:
    """``■ killed (SIGKILL)``."""
    look = _LOOKS.get(status, _UNKNOWN)
    return f"{look.symbol} {plain(status)}" + (f" ({plain(cause)})" if cause else "")


def styled_state(status: str) -> str:
    """The rich style that goes with a state; only ever beside its symbol and word."""
    return _LOOKS.get(status, _UNKNOWN).style


def age(seconds: float) -> str:
    """``2 s``, ``3 min``, ``4 h``, ``5 d``: one unit is enough to know where one stands."""
    seconds = max(seconds, 0.0)
    for unit, length, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def size(byte_count: int) -> str:
    """``273 MB``: decimal units, as disks are sold and ``df -H`` counts."""
    amount = float(byte_count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def count(whole: int | None) -> str:
    """``41,000``; a dash where there is none."""
    return "-" if whole is None else f"{whole:,}"


def number(value: float | None) -> str:
    """Six significant digits; NaN and infinities by name; a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
