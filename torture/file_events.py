"""How is a process killed at the n-th thing it does to a file?

An audit hook of Python counts what is done to files of a folder. ``TORTURE_KILL=who:n`` kills at the n-th: the process
that does it (``writer``), the training that started it (``trainer``), or both. ``TORTURE_COUNT`` names a file that gets
one line per event, to know how many there are.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["watch_files"]

_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate"})


def watch_files(part_of_path: str, *, is_trainer: bool) -> None:
    """Count, and kill, from now on in this process.

    Args:
        part_of_path: What a path must have in it to count.
        is_trainer: Whether this process is the training itself; else the one that it started to write files.
    """
    who, _, number = os.environ.get("TORTURE_KILL", "").partition(":")
    count_file = os.environ.get("TORTURE_COUNT")
    trainer = os.getpid() if is_trainer else os.getppid()
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not any(part_of_path in str(argument) for argument in arguments[:2]):
            return
        seen += 1
        if count_file is not None and str(arguments[0]) != count_file:
            descriptor = os.open(count_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, b"%s %s\n" % (event.encode(), str(arguments[0]).encode()))
            os.close(descriptor)
        if str(seen) == number and _is_first():
            if who in {"trainer", "both"}:
                os.kill(trainer, signal.SIGKILL)
            if who in {"writer", "both"}:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_first() -> bool:
    """Whether nobody was killed in this folder yet: a process that takes over must not die of the same."""
    try:
        os.close(os.open("killed", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
