"""Which event does the payload of a record stand for?

A payload whose hash holds may still come from a later version, or from somebody who means harm: unknown kinds, unknown
fields and wrong types make a record unknown, never an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import msgspec

from milepost.core.events import Event, Metrics, event_from_body

__all__ = ["decode_record", "kind_of"]

_decode = msgspec.msgpack.Decoder().decode
_NUMBERS = frozenset({int, float, bool})
_NAMES = frozenset({str})
_CLASS_OF_KIND: dict[int, type[Any]] = {cls.kind: cls for cls in get_args(Event)}


def kind_of(payload: bytes) -> int:
    """The kind of a record without decoding it; -1 if it has none."""
    return payload[1] if len(payload) > 1 and payload[1] < 0x80 else -1


def decode_record(payload: bytes) -> tuple[int, Event] | None:
    """Monotonic nanoseconds and event of a payload, or None if this version has no meaning for it."""
    try:
        record = _decode(payload)
        kind, step, epoch, monotonic_ns, body = record[:5]
        if type(kind) is not int or type(monotonic_ns) is not int or not isinstance(body, dict):
            return None
        if not (step is None or type(step) is int) or not (epoch is None or type(epoch) in {int, float}):
            return None
        event = _metrics(step, epoch, body, record[5:]) if kind == Metrics.kind else _other(kind, step, epoch, body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return None
    return None if event is None else (monotonic_ns, event)


def _metrics(step: int | None, epoch: float | None, body: dict[Any, Any], rest: list[Any]) -> Event | None:
    if _NUMBERS.issuperset(map(type, body.values())) and _NAMES.issuperset(map(type, body)):
        return Metrics(step=step, epoch=epoch, values=body)  # almost all of them: nothing to judge or to flatten
    event = event_from_body(Metrics.kind, step, epoch, body)
    if not isinstance(event, Metrics) or "None" not in event.rejected.values():
        return event
    # A nil stands for a value that still comes from a device if the record says so, else for the user's None.
    awaited = set(rest[0]) if rest and isinstance(rest[0], list) else set()
    rejected = {
        name: "NoneType" if kind == "None" and name not in awaited else kind for name, kind in event.rejected.items()
    }
    return replace(event, rejected=rejected)


def _other(kind: int, step: int | None, epoch: float | None, body: dict[Any, Any]) -> Event | None:
    cls = _CLASS_OF_KIND.get(kind)
    if cls is None:
        return None
    event: Event = msgspec.convert({"step": step, "epoch": epoch} | body, cls)
    return event
