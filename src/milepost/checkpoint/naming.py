"""What is each tensor of a state called?

By its place: ``model.encoder.layer.0.weight``. State of an optimizer is numbered in torch's layout and called by the
name of its parameter: ``optimizer.state.encoder.layer.0.weight.exp_avg``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["map_leaves", "named_leaves"]


def named_leaves(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of everything in ``state`` that is no dict, list or tuple."""
    for name, value in _children(state, prefix):
        if isinstance(value, (dict, list, tuple)):
            yield from named_leaves(value, name)
        else:
            yield name, value


def map_leaves(state: Any, change: Callable[[str, Any], Any], *, without: Any, prefix: str = "") -> Any:
    """``state`` with each leaf replaced by ``change(name, leaf)``, and without those that became ``without``.

    An empty dict, list or tuple counts as a leaf; one that loses all it had goes too.
    """
    if not isinstance(state, (dict, list, tuple)) or not state:
        return change(prefix, state)
    changed = [map_leaves(value, change, without=without, prefix=name) for name, value in _children(state, prefix)]
    if all(value is without for value in changed):
        return without
    if isinstance(state, dict):
        kept = ((key, value) for key, value in zip(state, changed, strict=True) if value is not without)
        return OrderedDict(kept) if isinstance(state, OrderedDict) else dict(kept)
    kept_items = [value for value in changed if value is not without]
    return kept_items if isinstance(state, list) else tuple(kept_items)


def _children(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    before = f"{prefix}." if prefix else ""
    if not isinstance(value, dict):
        yield from ((f"{before}{index}", part) for index, part in enumerate(value))
        return
    labels = _parameter_names(value) if "param_groups" in value else None
    for key, part in value.items():
        if labels is not None and key == "state" and isinstance(part, dict):
            part = _Numbered(part, labels)  # noqa: PLW2901 - the same mapping, only called otherwise
        yield f"{before}{value.label(key) if isinstance(value, _Numbered) else key}", part


def _parameter_names(optimizer: dict[Any, Any]) -> dict[Any, str]:
    labels: dict[Any, str] = {}
    for group in optimizer["param_groups"]:
        labels.update(zip(group.get("params", ()), group.get("param_names", ()), strict=False))
    return labels


class _Numbered(dict[Any, Any]):
    """A mapping by number whose entries are called by the names of the parameters."""

    def __init__(self, content: dict[Any, Any], labels: dict[Any, str]) -> None:
        super().__init__(content)
        self._labels = labels

    def label(self, key: Any) -> str:
        return self._labels.get(key, str(key))
