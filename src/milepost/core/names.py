"""How does a name that a person chose become a name that every file system accepts?

**Invariants**: an id holds only ``[A-Za-z0-9._-]``, never starts with a dot or a dash, has at most 120 characters, and
is no reserved device name of Windows. It therefore cannot leave its folder, hide itself, or look like an option.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from string import Formatter
from typing import Any

from milepost.core.errors import InvalidInputError

__all__ = ["is_safe_id", "render_name", "safe_name", "timestamp"]

_LONGEST = 80
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def safe_name(name: str) -> str:
    """``name`` with other characters as one dash and dots in a row as one; ``"run"`` if nothing is left."""
    cleaned = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip("-.")[:_LONGEST].strip("-.")
    if not cleaned or _RESERVED.fullmatch(cleaned):
        cleaned = f"run-{cleaned}".rstrip("-")
    return cleaned


def is_safe_id(text: str) -> bool:
    """Whether ``text`` can be the id of a run, and so a folder name, as it stands."""
    return bool(_SAFE.fullmatch(text)) and ".." not in text and not _RESERVED.fullmatch(text)


def timestamp(seconds: float | None = None) -> str:
    """Local time as ``20261124-133155``, which sorts by time and is safe in a file name."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(seconds))


class _PlainFields(Formatter):
    """Fields are plain keys: without attribute or index access a template cannot reach into objects."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return self.get_value(field_name, args, kwargs), field_name


def render_name(template: str, hyperparameters: Mapping[str, Any]) -> str:
    """Fill ``"bert-lr{learning_rate:.0e}"`` from the hyperparameters.

    Raises:
        InvalidInputError: The template is empty, names a hyperparameter that is not there, or is malformed.
    """
    if not template.strip():
        raise InvalidInputError("the experiment's name is empty", cure='give it a name, for example "bert-fine-tuning"')
    if "{" not in template and "}" not in template:
        return template
    try:
        return _PlainFields().vformat(template, (), hyperparameters)
    except (KeyError, IndexError) as error:
        known = ", ".join(map(str, hyperparameters)) or "none"
        raise InvalidInputError(
            f"the name {template!r} asks for the hyperparameter {error}, which is not given",
            cure=f"known are: {known}; double the braces to write one",
        ) from None
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InvalidInputError(
            f"the name {template!r} is no valid template ({error})", cure="double the braces to write one"
        ) from None
