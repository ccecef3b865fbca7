"""How does a value become a node of the typed tree, or a refusal that names its place?"""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from milepost.checkpoint.plain_values import ARRAY_TYPE, DEEPEST, MOST_NODES, EnumMember, Node, PlainFields
from milepost.core.errors import InvalidInputError

__all__ = ["TreeEncoder"]

#: The way from the root, last step outermost: a link costs less than a text, and few places are ever shown.
Place = tuple["Place", Any] | None

_WHOLE = 1 << 53
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Root(str):
    """What the root is called; every other step is a key, an index or a field."""

    __slots__ = ()


class TreeEncoder:
    """One walk through a value; ``leaf`` says what is stored outside of the tree."""

    def __init__(self, leaf: Callable[[Any], int | None]) -> None:
        self.leaf = leaf
        self.depth = 0
        self.count = 0
        self._outside: set[type] = set()  # types of which one was stored outside: mostly tensors, by the hundred

    def encode(self, value: Any, place: str) -> Node:
        """The node of ``value``, which errors call ``place``."""
        root: Place = (None, _Root(place)) if place else None
        try:
            return self.node(value, root)
        except RecursionError:
            raise _refused(root, "nesting this deep", "flatten it, or save from a shallower call") from None

    def node(self, value: Any, place: Place) -> Node:
        """One value inside the tree."""
        cls = type(value)
        self.count += 1
        if value is None or cls is bool or (cls is int and -_WHOLE < value < _WHOLE):
            return value
        if self.depth >= DEEPEST or self.count > MOST_NODES:
            raise _refused(place, "a tree this deep or large", "look for a cycle, or flatten it")
        if cls in self._outside and (node := self._as_leaf(value, place)) is not None:
            return node
        self.depth += 1
        try:
            encode = _ENCODERS.get(cls)
            return encode(self, value, place) if encode is not None else self._unlisted(value, place)
        finally:
            self.depth -= 1

    def items(self, values: Iterable[Any], place: Place) -> list[Node]:
        """The nodes of a sequence."""
        return [self.node(value, (place, index)) for index, value in enumerate(values)]

    def pairs(self, mapping: Mapping[Any, Any], place: Place) -> list[Node]:
        """Keys and values in turn: half the nesting of pairs, so that JSON parsers have no trouble with it."""
        flat: list[Node] = []
        for key, value in mapping.items():
            inner = (place, key)
            if type(key) is not str and not _can_be_key(key):
                raise _refused(inner, f"a key of type {type(key).__name__}", "use text or numbers as keys")
            flat += (self.node(key, inner), self.node(value, inner))
        return flat

    def _unlisted(self, value: Any, place: Place) -> Node:
        """Types that are recognised by what they are rather than by their exact class."""
        for recognise in (self._as_leaf, _as_scalar, _as_torch_value, self._as_fields):  # mostly tensors
            node = recognise(value, place)
            if node is not None:
                return node
        raise _refused(place, type(value).__name__, "save its numbers and names instead, or give it a state_dict")

    def _as_fields(self, value: Any, place: Place) -> Node | None:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            named = dict(zip(value._fields, value, strict=True))
        elif is_dataclass(value) and not isinstance(value, type):
            named = {f.name: getattr(value, f.name) for f in fields(value)}
        else:
            return None
        flat = [part for name in named for part in (name, self.node(named[name], (place, name)))]
        return {"fields": [_name(type(value)), flat]}

    def _as_leaf(self, value: Any, _: Place) -> Node | None:
        index = self.leaf(value)
        if index is None:
            return None
        self._outside.add(type(value))
        return {"leaf": index}


def _as_scalar(value: Any, place: Place) -> Node | None:
    if isinstance(value, Enum):
        return {"enum": [_name(type(value)), value.name]}
    if isinstance(value, np.generic):
        little = np.asarray(value).astype(_storable(value.dtype, place), copy=False)
        return {"numpy": [little.dtype.str, _base64(little.tobytes())]}
    if isinstance(value, PurePath):
        return {"path": _text(str(value))}
    if isinstance(value, str):  # torch.__version__ is of such a class
        return _text(str(value))
    return None


def _encode_list(encoder: TreeEncoder, value: list[Any], place: Place) -> Node:
    return encoder.items(value, place)


def _encode_items(tag: str, encoder: TreeEncoder, value: Iterable[Any], place: Place) -> Node:
    return {tag: encoder.items(value, place)}


def _encode_set(tag: str, encoder: TreeEncoder, value: Iterable[Any], place: Place) -> Node:
    for item in value:
        if not _can_be_key(item):
            raise _refused(place, f"a member of type {type(item).__name__}", "use text or numbers as members")
    # hash order differs from process to process; equal states shall give equal files
    return {tag: sorted(encoder.items(value, place), key=json.dumps)}


def _encode_pairs(tag: str, encoder: TreeEncoder, value: Mapping[Any, Any], place: Place) -> Node:
    return {tag: encoder.pairs(value, place)}


def _encode_ordered(encoder: TreeEncoder, value: OrderedDict[Any, Any], place: Place) -> Node:
    pairs = encoder.pairs(value, place)
    metadata = getattr(value, "_metadata", None)  # torch hangs the modules' versions on a state_dict
    if metadata is None:
        return {"OrderedDict": pairs}
    return {"state_dict": [pairs, encoder.node(metadata, (place, "_metadata"))]}


def _encode_attributes(tag: str, encoder: TreeEncoder, value: Any, place: Place) -> Node:
    return {tag: encoder.pairs(vars(value), place)}


def _encode_deque(encoder: TreeEncoder, value: deque[Any], place: Place) -> Node:
    return {"deque": [value.maxlen, encoder.items(value, place)]}


def _encode_plain_fields(encoder: TreeEncoder, value: PlainFields, place: Place) -> Node:
    return {"fields": [value.type_name, encoder.pairs(value, place)]}


def _encode_array(encoder: TreeEncoder, value: np.ndarray[Any, Any], place: Place) -> Node:
    index = encoder.leaf(value)
    if index is not None:
        return {"array_leaf": index}
    little = value.astype(_storable(value.dtype, place), copy=False)
    return {"array": [little.dtype.str, list(value.shape), _base64(little.tobytes())]}


def _storable(dtype: np.dtype[Any], place: Place) -> np.dtype[Any]:
    little = dtype.newbyteorder("<")
    if not ARRAY_TYPE.fullmatch(little.str):
        raise _refused(place, f"a NumPy {dtype} value", "convert it to numbers or text")
    return little


def _as_torch_value(value: Any, _: Place) -> Node | None:
    torch = sys.modules.get("torch")  # who has no torch cannot hold its values
    if torch is None:
        return None
    if isinstance(value, torch.dtype):
        return {"torch.dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Size):
        return {"torch.Size": list(value)}
    if isinstance(value, torch.device):
        return {"torch.device": str(value)}
    return None


_ENCODERS: dict[type, Callable[[TreeEncoder, Any, Place], Node]] = {
    int: lambda _, value, __: {"int": str(value)},
    float: lambda _, value, __: {"float": value.hex()},
    complex: lambda _, value, __: {"complex": [value.real.hex(), value.imag.hex()]},
    str: lambda _, value, __: _text(value),
    bytes: lambda _, value, __: {"bytes": _base64(value)},
    bytearray: lambda _, value, __: {"bytearray": _base64(value)},
    list: _encode_list,
    tuple: partial(_encode_items, "tuple"),
    set: partial(_encode_set, "set"),
    frozenset: partial(_encode_set, "frozenset"),
    dict: partial(_encode_pairs, "dict"),
    types.MappingProxyType: partial(_encode_pairs, "dict"),
    OrderedDict: _encode_ordered,
    deque: _encode_deque,
    argparse.Namespace: partial(_encode_attributes, "Namespace"),
    types.SimpleNamespace: partial(_encode_attributes, "SimpleNamespace"),
    PlainFields: _encode_plain_fields,
    EnumMember: lambda _, value, __: {"enum": [value.type_name, value.name]},
    datetime: lambda _, value, __: {"datetime": [value.isoformat(), value.fold]},
    date: lambda _, value, __: {"date": value.isoformat()},
    timedelta: lambda _, value, __: {"timedelta": [value.days, value.seconds, value.microseconds]},
    np.ndarray: _encode_array,
}


def _text(value: str) -> Node:
    # JSON would join two lone surrogates into one character
    return {"text": _base64(value.encode("utf-8", "surrogatepass"))} if _SURROGATE.search(value) else value


def _base64(data: bytes | bytearray) -> str:
    return b64encode(data).decode("ascii")


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _can_be_key(key: Any) -> bool:
    """Whether the decoded key is sure to be hashable again, and equal to no other."""
    if isinstance(key, (tuple, frozenset)):
        return not hasattr(key, "_fields") and all(map(_can_be_key, key))
    scalars = (str, int, float, complex, bytes, Enum, EnumMember, PurePath, date, timedelta, np.generic)
    return key is None or isinstance(key, scalars) or _as_torch_value(key, None) is not None


def _step(key: Any) -> str:
    if type(key) is _Root:
        return str(key)
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r:.80}]"


def _render(place: Place) -> str:
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(_step(step))
    return "".join(reversed(steps)).removeprefix(".") or "the value"


def _refused(place: Place, what: str, cure: str) -> InvalidInputError:
    return InvalidInputError(f"{_render(place)}: {what} cannot be saved", cure=cure, kind="unsupported-state")
