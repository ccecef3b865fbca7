"""Which of Lightning's two packages does this training use: ``lightning``, or ``pytorch_lightning``?

They hold the same code under two names, and each knows only its own base classes. What the script has imported decides;
a script that has imported both gets classes that both know.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from milepost.core.errors import MissingDependencyError

__all__ = ["base_class", "rank"]

_PACKAGES = (("lightning", "lightning.pytorch", "lightning.fabric"), ("pytorch_lightning", "", "lightning_fabric"))


def _used() -> list[tuple[str, str]]:
    """The names of trainer and fabric in each package in use."""
    names = [(pytorch or package, fabric) for package, pytorch, fabric in _PACKAGES]
    loaded = [pair for pair in names if pair[0] in sys.modules]
    if loaded:
        return loaded
    installed = [names[index] for index, (package, _, _) in enumerate(_PACKAGES) if find_spec(package)]
    if not installed:
        raise MissingDependencyError("Lightning is not installed", cure='pip install "milepost[lightning]"')
    return installed[:1]


def base_class(module: str, name: str) -> Any:
    """The class that milepost's own is derived from.

    Args:
        module: Where it is, with ``{pytorch}`` or ``{fabric}`` in place of the package.
        name: Its name.

    Raises:
        MissingDependencyError: Neither package is installed.
    """
    found = [getattr(import_module(module.format(pytorch=one, fabric=two)), name) for one, two in _used()]
    return found[0] if len(found) == 1 else type(name, tuple(found), {})


def rank() -> int:
    """The rank of this process, as Lightning counts: known before there is a process group."""
    functions = [import_module(f"{fabric}.utilities.rank_zero").rank_zero_only for _, fabric in _used()]
    return max(int(function.rank) for function in functions)
