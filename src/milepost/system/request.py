"""What was asked of a start, made plain and checked before anything is created?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.names import render_name
from milepost.core.plain import plain
from milepost.environment.secrets import redact, redact_tree

__all__ = ["StartRequest", "make_request", "script_of_this_process"]

_LARGEST = 48 * 1024
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """The arguments of ``start_experiment`` as plain values, secrets redacted."""

    name: str
    description: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    dataset_info: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    resume: str = "never"
    force: bool = False


def make_request(
    name: str,
    description: str,
    hyperparameters: Any,
    model_config: Any,
    dataset_info: Any,
    tags: Iterable[str] | None,
    *,
    group: str | None,
    resume: str,
    force: bool,
) -> StartRequest:
    """Check and flatten what the user passed.

    Raises:
        InvalidCallError: An argument has the wrong type.
        InvalidInputError: The name is empty or asks for an unknown hyperparameter, or a tag is empty.
    """
    for label, text in (("name", name), ("description", description)):
        if not isinstance(text, str):
            raise InvalidCallError(f"{label} is {type(text).__name__}", cure="give a text")
    if group is not None and (not isinstance(group, str) or not group.strip()):
        raise InvalidInputError(f"group is {group!r}", cure="give a text that is not empty, or None")
    if not isinstance(resume, str):
        raise InvalidCallError(f"resume is {resume!r}", cure="give 'never', 'auto', 'must', or the id of a run")
    listed = _listed(tags)
    named = _mapping("hyperparameters", hyperparameters)
    return StartRequest(
        name=_bounded("name", render_name(name, named)),
        description=_bounded("description", redact(description)),
        hyperparameters=_kept("hyperparameters", named),
        model_config=_kept("model_config", _mapping("model_config", model_config)),
        dataset_info=_kept("dataset_info", _mapping("dataset_info", dataset_info)),
        tags=_bounded("tags", listed),
        group=group,
        resume=resume,
        force=force,
    )


def _listed(tags: Iterable[str] | None) -> list[str]:
    if isinstance(tags, str):
        raise InvalidCallError(f"tags is the text {tags!r}", cure=f"give a list: [{tags!r}]")
    if tags is not None and not isinstance(tags, Iterable):
        raise InvalidCallError(f"tags is {tags!r}", cure="give a list of texts")
    listed = list(tags or ())
    for tag in listed:
        if not isinstance(tag, str) or not tag.strip():
            raise InvalidInputError(f"a tag is {tag!r}", cure="give texts that are not empty")
    return listed


def _mapping(label: str, value: Any) -> dict[str, Any]:
    """A mapping, a dataclass or an argparse namespace as a dict."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name, None) for one in fields(value)}
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return {key: inner for key, inner in vars(value).items() if not key.startswith("_")}
    raise InvalidCallError(
        f"{label} is {type(value).__name__}", cure="give a mapping, a dataclass or an argparse namespace"
    )


def _kept(label: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = redact_tree(plain(values))
    return _bounded(label, kept)


def _bounded(label: str, value: _Value) -> _Value:
    """``value``, if a record of the log can hold it; a number takes up to nine bytes there, whatever its digits."""
    size = len(json.dumps(value)) + 9 * _count(value)
    if size > _LARGEST:
        raise InvalidInputError(
            f"{label} is larger than {_LARGEST // 1024} KiB as text", cure="keep it in a file and pass its path"
        )
    return value


def _count(value: Any) -> int:
    """How many values are in it."""
    if isinstance(value, dict):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, list) else 1


def script_of_this_process() -> str:
    """The script, or the module, that this training runs; a notebook by its working folder."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return str(Path(file).absolute()) if file else f"interactive in {os.getcwd()}"
