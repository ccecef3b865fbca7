"""Which of the values that people log are numbers, and what becomes of the others?

Python and NumPy numbers and tensors without dimensions are numbers. A tensor on a device is one whose value is not
known yet: reading it here would stop the training until the device has caught up. All else is skipped and said once.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from milepost.core.errors import InvalidInputError
from milepost.core.events import Number

__all__ = [
    "NeedsWalk",
    "OnBadValue",
    "PlainMetrics",
    "encode_hook",
    "fits_64_bits",
    "plain_body",
    "plain_metrics",
    "refuse_bad_value",
]

#: Called with the metric's name, the name of the value's type, and the value.
OnBadValue = Callable[[str, str, object], None]

_DEEPEST = 64
_NOT_READABLE = (TypeError, ValueError, RuntimeError, OverflowError, AttributeError)


class NeedsWalk(TypeError):  # noqa: N818 - a signal to the caller, not an error anybody sees
    """The encoder met a value that needs its name to be dealt with."""


@dataclass(slots=True)
class PlainMetrics:
    """Metrics as the record holds them.

    Attributes:
        values: Names to numbers of at most 64 bits, nested as given; None where a device value follows.
        big: Integers beyond 64 bits, by full name, as decimal text.
        on_device: Full names and tensors whose values follow.
    """

    values: dict[str, Any] = field(default_factory=dict)
    big: dict[str, str] = field(default_factory=dict)
    on_device: list[tuple[str, Any]] = field(default_factory=list)


def fits_64_bits(value: int) -> bool:
    """Whether msgpack has a form for the integer."""
    return -(1 << 63) <= value < (1 << 64)


def encode_hook(value: object) -> Number | dict[Any, Any]:
    """What the encoder does with a value it does not know: the number it stands for.

    Raises:
        NeedsWalk: It is no number, or not known yet.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if _device_of(value) is not None:
        raise NeedsWalk
    number = _number(value)
    if number is None:
        raise NeedsWalk
    return number


def plain_metrics(metrics: Mapping[Any, Any], on_bad_value: OnBadValue, *, wait_for_device: bool) -> PlainMetrics:
    """Sort metrics into what a record can hold; every value that is no number goes to ``on_bad_value``.

    Args:
        metrics: As the user gave them.
        on_bad_value: May raise, which ends the call.
        wait_for_device: Read device values at once, where nobody fetches them later.
    """
    sorting = _Sorting(on_bad_value, wait_for_device=wait_for_device)
    sorting.plain.values = sorting.tree(metrics, "", 0)
    return sorting.plain


class _Sorting:
    """One walk over a tree of metrics."""

    def __init__(self, on_bad_value: OnBadValue, *, wait_for_device: bool) -> None:
        self.plain = PlainMetrics()
        self._bad = on_bad_value
        self._wait_for_device = wait_for_device

    def tree(self, metrics: Mapping[Any, Any], prefix: str, depth: int) -> dict[str, Any]:
        if depth > _DEEPEST:
            self._bad(prefix.rstrip("/"), "mapping nested too deep", "...")
            return {}
        kept: dict[str, Any] = {}
        for key, value in list(metrics.items()):
            name = _text(str(key))
            if isinstance(value, Mapping):
                kept[name] = self.tree(value, f"{prefix}{name}/", depth + 1)
            elif _device_of(value) is not None and not self._wait_for_device:
                self._on_device(kept, name, prefix + name, value)
            else:
                self._here(kept, name, prefix + name, value)
        return kept

    def _on_device(self, kept: dict[str, Any], name: str, full: str, tensor: Any) -> None:
        if getattr(tensor, "is_complex", bool)():
            self._bad(full, "complex tensor", tensor)
        else:
            kept[name] = None
            self.plain.on_device.append((full, tensor))

    def _here(self, kept: dict[str, Any], name: str, full: str, value: object) -> None:
        number = _number(value)
        if number is None:
            self._bad(full, type(value).__name__, value)
        elif isinstance(number, int) and not fits_64_bits(number):
            self.plain.big[full] = _big(number)
        else:
            kept[name] = number


def _number(value: Any) -> Number | None:
    """The plain number that ``value`` is, or None. Exact: float32 widens, integers stay integers."""
    if type(value) in {int, float, bool}:
        return value  # type: ignore[no-any-return]
    try:
        if getattr(value, "ndim", None) == 0:
            item = value.item()
            if type(item) in {int, float, bool}:
                return item  # type: ignore[no-any-return]
            return float(item) if isinstance(item, numbers.Real) else None
        if isinstance(value, int):
            return int(value)
        return float(value) if isinstance(value, numbers.Real) else None
    except _NOT_READABLE:
        return None


def _device_of(value: Any) -> str | None:
    """The kind of device a tensor without dimensions lies on, or None if its value is in this process's memory."""
    kind = getattr(getattr(value, "device", None), "type", None)
    if not isinstance(kind, str) or kind in {"cpu", "meta"} or getattr(value, "ndim", None) != 0:
        return None
    return kind


def plain_body(value: Any, depth: int = 0) -> Any:
    """``value`` as msgpack can hold it, for descriptions and summaries, where a text is better than an error.

    Integers beyond 64 bits become decimal text; NumPy and tensor scalars numbers; anything unknown its ``str``.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _plain_container(value, depth)
    number = _number(value)
    if number is None:
        return _text(str(value))
    return number if not isinstance(number, int) or fits_64_bits(number) else _big(number)


def _plain_container(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        return {_text(str(key)): plain_body(item, depth + 1) for key, item in value.items()}
    return [plain_body(item, depth + 1) for item in value]


def _big(number: int) -> str:
    """Decimal text; hexadecimal where decimal takes quadratic time and Python refuses it."""
    return str(number) if number.bit_length() < 10_000 else hex(number)


def _text(text: str) -> str:
    """Lone surrogates (from undecodable file names) have no UTF-8; they become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def refuse_bad_value(name: str, kind: str, value: object) -> None:
    """``on_bad_value`` under ``strict=True``.

    Raises:
        InvalidInputError: Always.
    """
    raise InvalidInputError(
        f"the metric {name!r} is {value!r:.80}, a {kind} and no number",
        cure="log numbers and tensors without dimensions, or set strict=False to skip it with one warning",
        kind="not-a-number",
    )
