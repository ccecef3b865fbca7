"""How does a node of the typed tree become the value it was, and nothing else?"""

from __future__ import annotations

import argparse
import re
import types
from base64 import b64decode
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from milepost.checkpoint.plain_values import ARRAY_TYPE, DEEPEST, MOST_NODES, EnumMember, Node, PlainFields
from milepost.core.errors import CorruptDataError, MilepostError

__all__ = ["TreeDecoder"]

#: torch imports submodules on attribute access, so it is asked for nothing that cannot be a dtype.
_TORCH_DTYPE = re.compile(r"(b?float|complex|q?u?int|bits|bool)\w{0,20}")


class TreeDecoder:
    """One walk through a tree that may be forged; ``leaf`` gives what is stored outside of it."""

    def __init__(self, leaf: Callable[[int], Any]) -> None:
        self.leaf = leaf
        self.depth = 0
        self.count = 0

    def decode(self, node: Node) -> Any:
        """The value of ``node``."""
        try:
            return self.value(node)
        except MilepostError:
            raise
        except (ValueError, TypeError, OverflowError, AttributeError, RuntimeError) as error:
            raise _corrupt(f"has a malformed value ({error})") from None

    def value(self, node: Node) -> Any:
        """One value inside the tree."""
        self.count += 1
        if self.count > MOST_NODES:
            raise _corrupt("has too many values")
        if node is None or isinstance(node, (bool, int, str)):
            return node
        if self.depth >= DEEPEST:
            raise _corrupt("is nested too deeply")
        self.depth += 1
        try:
            return self.items(node) if isinstance(node, list) else self._tagged(node)
        finally:
            self.depth -= 1

    def _tagged(self, node: Node) -> Any:
        if not isinstance(node, dict) or len(node) != 1:
            raise _corrupt("has a value without exactly one tag")
        [(tag, content)] = node.items()
        decode = _DECODERS.get(tag)
        if decode is None:
            raise _corrupt(f"has a value of the unknown kind {tag!r}")
        return decode(self, content)

    def items(self, nodes: Node) -> list[Any]:
        """The values of an array of nodes."""
        return [self.value(node) for node in _typed(nodes, list)]

    def pairs(self, flat: Node) -> Iterator[tuple[Any, Any]]:
        """The keys and values that stand in turn in an array of nodes."""
        parts = self.items(flat)
        if len(parts) % 2:
            raise _corrupt("has a key without a value")
        return zip(parts[::2], parts[1::2], strict=True)


def _decode_state_dict(decoder: TreeDecoder, content: Node) -> OrderedDict[Any, Any]:
    flat, metadata = content
    mapping = OrderedDict(decoder.pairs(flat))
    vars(mapping)["_metadata"] = decoder.value(metadata)
    return mapping


def _decode_deque(decoder: TreeDecoder, content: Node) -> deque[Any]:
    longest, nodes = content
    return deque(decoder.items(nodes), maxlen=longest)


def _decode_fields(decoder: TreeDecoder, content: Node) -> PlainFields:
    type_name, flat = content
    return PlainFields(_typed(type_name, str), decoder.pairs(flat))


def _decode_datetime(_: TreeDecoder, content: Node) -> datetime:
    text, fold = content
    return datetime.fromisoformat(text).replace(fold=fold)


def _decode_array(_: TreeDecoder, content: Node) -> np.ndarray[Any, Any]:
    type_text, shape, data = content
    return _array(type_text, tuple(_typed(length, int) for length in shape), _bytes(data))


def _decode_numpy(_: TreeDecoder, content: Node) -> Any:
    type_text, data = content
    return _array(type_text, (), _bytes(data))[()]


def _array(type_text: str, shape: tuple[int, ...], data: bytes) -> np.ndarray[Any, Any]:
    if not ARRAY_TYPE.fullmatch(type_text):
        raise _corrupt(f"has an array of the unknown type {type_text!r}")
    dtype = np.dtype(type_text)
    count = 1
    for length in shape:
        count *= length
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data):
        raise _corrupt(f"has an array of shape {shape} with {len(data)} bytes")
    return np.ndarray(shape, dtype, buffer=data).copy()


def _decode_torch(kind: str, content: Node) -> Any:
    """The torch object, or its text where torch is not installed: reading must not need it."""
    try:
        import torch
    except ImportError:
        return tuple(content) if kind == "Size" else f"torch.{content}" if kind == "dtype" else content
    if kind == "Size":
        return torch.Size(content)
    if kind == "device":
        return torch.device(_typed(content, str))
    dtype = getattr(torch, content, None) if _TORCH_DTYPE.fullmatch(content) else None
    return dtype if isinstance(dtype, torch.dtype) else f"torch.{content}"


_DECODERS: dict[str, Callable[[TreeDecoder, Any], Any]] = {
    "int": lambda _, content: int(_typed(content, str)),
    "float": lambda _, content: float.fromhex(content),
    "complex": lambda _, content: complex(*map(float.fromhex, content)),
    "text": lambda _, content: _decode_text(content),
    "bytes": lambda _, content: _bytes(content),
    "bytearray": lambda _, content: bytearray(_bytes(content)),
    "tuple": lambda decoder, content: tuple(decoder.items(content)),
    "set": lambda decoder, content: set(decoder.items(content)),
    "frozenset": lambda decoder, content: frozenset(decoder.items(content)),
    "dict": lambda decoder, content: dict(decoder.pairs(content)),
    "OrderedDict": lambda decoder, content: OrderedDict(decoder.pairs(content)),
    "state_dict": _decode_state_dict,
    "deque": _decode_deque,
    "Namespace": lambda decoder, content: argparse.Namespace(**dict(decoder.pairs(content))),
    "SimpleNamespace": lambda decoder, content: types.SimpleNamespace(**dict(decoder.pairs(content))),
    "fields": _decode_fields,
    "enum": lambda _, content: EnumMember(*(_typed(part, str) for part in content)),
    "path": lambda _, content: Path(_string(content)),
    "datetime": _decode_datetime,
    "date": lambda _, content: date.fromisoformat(content),
    "timedelta": lambda _, content: timedelta(*content),
    "numpy": _decode_numpy,
    "array": _decode_array,
    "leaf": lambda decoder, content: decoder.leaf(_typed(content, int)),
    "array_leaf": lambda decoder, content: np.asarray(decoder.leaf(_typed(content, int))),
    "torch.dtype": lambda _, content: _decode_torch("dtype", content),
    "torch.Size": lambda _, content: _decode_torch("Size", content),
    "torch.device": lambda _, content: _decode_torch("device", content),
}


def _string(node: Node) -> str:
    """A text that stands in another value: plain, or tagged because JSON would change it."""
    return _decode_text(node["text"]) if isinstance(node, dict) and node.keys() == {"text"} else str(_typed(node, str))


def _decode_text(content: Node) -> str:
    return _bytes(content).decode("utf-8", "surrogatepass")


def _bytes(text: Any) -> bytes:
    return b64decode(_typed(text, str), validate=True)


def _typed(value: Any, cls: type) -> Any:
    if type(value) is not cls:
        raise _corrupt(f"has {value!r:.60} where a {cls.__name__} belongs")
    return value


def _corrupt(what: str) -> CorruptDataError:
    return CorruptDataError(f"the typed tree {what}", cure="use another checkpoint")
