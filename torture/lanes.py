"""How do several faults happen at once without disturbing each other?

Each lane is a process of its own, forked from one that has imported everything, and takes the next piece of work.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from torture.subject import adopt_orphans

__all__ = ["RESULTS", "new_folder", "prepare", "spread"]

RESULTS = Path(__file__).parent / "results"

#: ``torch._dynamo`` is imported by the first optimizer of a process, and takes a second.
_NEEDED_IN_FORKS = (
    "milepost.checkpoint.restore",
    "milepost.companion.doctor",
    "milepost.system.launch",
    "torture.checker",
    "torture.worker",
    "torch._dynamo",
)

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def prepare() -> None:
    """Import what workers and checkers need, once, so that a fork costs milliseconds."""
    root = Path(__file__).parents[1]
    paths = [str(root / "src"), str(root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    for name in [name for name in os.environ if name.startswith("MILEPOST_")]:
        del os.environ[name]
    for module in _NEEDED_IN_FORKS:
        importlib.import_module(module)


def new_folder() -> Path:
    """A new empty folder for a store."""
    base = RESULTS / "stores"
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))


def spread(function: Callable[[_Task], _Result], tasks: Iterable[_Task], lanes: int) -> Iterator[_Result]:
    """Results of ``function`` for each task, as they come."""
    prepare()
    sys.stdout.flush()
    with multiprocessing.get_context("fork").Pool(lanes, initializer=adopt_orphans) as pool:
        yield from pool.imap_unordered(function, tasks)
