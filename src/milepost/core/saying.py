"""How does milepost speak to the person at the terminal?

One line on standard error that begins with ``milepost:``, and the same line in our own log through :mod:`logging`,
where ``logging.basicConfig(level=logging.DEBUG)`` shows it together with everything quieter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

__all__ = ["follow_debug_mode", "keep_own_log", "logger", "say"]

logger = logging.getLogger("milepost")


def say(text: str, *, cure: str = "", level: int = logging.WARNING) -> None:
    """Print one line; never raises, because a closed terminal must not stop a training."""
    line = " ".join(f"{text}: {cure}".split()) if cure else " ".join(text.split())
    logger.log(level, line)
    with contextlib.suppress(Exception):
        print(f"milepost: {line}", file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that speaks


class _OwnLog(logging.FileHandler):
    """Gives up quietly: a full disk, or a folder that was removed, must not raise where something is said."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().emit(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Print no traceback; the line itself was said at the terminal."""


def keep_own_log(logs_dir: str | os.PathLike[str], pid: int) -> None:
    """Also write what we log to ``<logs_dir>/milepost-<pid>.log``; a folder that cannot be written is no error."""
    path = Path(logs_dir) / f"milepost-{pid}.log"
    if any(isinstance(h, logging.FileHandler) and Path(h.baseFilename) == path.absolute() for h in logger.handlers):
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _OwnLog(path, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
        handler.setLevel(logging.INFO)
        logger.addHandler(handler)
    follow_debug_mode()


def follow_debug_mode() -> None:
    """Let out what is quieter than a warning: always into our own log, debugging if the root logger wants it.

    A level that the user gave the logger ``milepost`` stays.
    """
    if logger.level in {logging.NOTSET, logging.INFO}:
        logger.setLevel(min(logging.INFO, logging.getLogger().getEffectiveLevel()))


# Without a handler of its own, logging would print warnings a second time through its handler of last resort.
logger.addHandler(logging.NullHandler())
