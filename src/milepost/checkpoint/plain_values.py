"""As what does an object of the user's own class come back, and what bounds a typed tree?

Reading must run no code of the file's choosing, so a class is never imported by its name: a dataclass or namedtuple
comes back as its fields, a member of an enumeration as its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ARRAY_TYPE", "DEEPEST", "MOST_NODES", "EnumMember", "Node", "PlainFields"]

#: What :mod:`json` reads and writes.
Node = Any

#: Few enough levels that neither JSON nor the walk meets Python's recursion limit, even when called from deep inside.
DEEPEST = 100
MOST_NODES = 10_000_000

#: The NumPy types whose arrays may stand in a tree: numbers, text, bytes, dates; never objects.
ARRAY_TYPE = re.compile(r"[<|][biufcSUMm]\d{1,9}(\[\d{0,9}[A-Za-z]{1,7}\])?")


class PlainFields(dict[str, Any]):
    """The fields of a dataclass or namedtuple that was saved, by name; ``type_name`` says of which."""

    def __init__(self, type_name: str, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(values)
        self.type_name = type_name

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self.type_name} was saved without a field {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainFields, (self.type_name, dict(self))


@dataclass(frozen=True, slots=True)
class EnumMember:
    """A member of an enumeration that was saved: its class and its name."""

    type_name: str
    name: str
