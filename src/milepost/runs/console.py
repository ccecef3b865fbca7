"""How does what a training prints get into its record, without changing a byte of what the person sees?

:class:`ConsoleTee` stands in for ``sys.stdout`` and ``sys.stderr``: it passes everything on, and gives every finished
line away, as a terminal would have left it (a progress bar that rewrote itself a thousand times is its last state).

**Invariants**: a print never fails or waits because of us. In a forked child, which has a record of its own, nothing is
given away.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from milepost.core.events import Line

__all__ = ["ConsoleTee", "append_console_log"]

#: Called with ``"stdout"`` or ``"stderr"`` and a finished line.
OnLine = Callable[[str, str], None]

_MOST_PER_RUN = 64 << 20
_LONGEST_LINE = 16 << 10


class ConsoleTee:
    """Both streams of this process, between :meth:`install` and :meth:`remove`."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._left = _MOST_PER_RUN
        self._pid = os.getpid()
        self._streams: list[_Stream] = []

    def install(self) -> None:
        """Begin. Whatever stands in for a stream now (a notebook, a test, another tee) is written through to."""
        for name in ("stdout", "stderr"):
            inner = getattr(sys, name)
            if inner is not None:
                stream = _Stream(name, inner, self._take)
                self._streams.append(stream)
                setattr(sys, name, stream)

    def remove(self) -> None:
        """End: give away unfinished lines, and put the streams back if nobody has replaced ours meanwhile."""
        for stream in self._streams:
            stream.finish()
            if getattr(sys, stream.stream_name) is stream:
                setattr(sys, stream.stream_name, stream.inner)
        self._streams.clear()

    def _take(self, stream: str, text: str) -> None:
        if self._left <= 0 or os.getpid() != self._pid:
            return
        self._left -= len(text) + 1
        self._on_line(stream, text)
        if self._left <= 0:
            self._on_line(stream, f"[more than {_MOST_PER_RUN >> 20} MiB were printed; the rest is not kept]")


class _Stream:
    """Passes for the stream it wraps: what it does not have itself, the other one answers."""

    def __init__(self, stream_name: str, inner: TextIO, take: OnLine) -> None:
        self.stream_name = stream_name
        self.inner = inner
        self._take = take
        self._line = ""
        self._taking = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __iter__(self) -> Any:
        return iter(self.inner)

    def write(self, text: str) -> int:
        """Write through, then look for finished lines."""
        written = self.inner.write(text)
        self._watch(text)
        return written

    def writelines(self, lines: Any) -> None:
        """As ``write`` for each."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """No more will come: an unfinished line is a line too."""
        if self._line:
            self._watch("\n")
        self._take = _ignore

    def _watch(self, text: Any) -> None:
        # What the record does with a line may itself print, or fail: neither may reach the person's print.
        if self._taking or not isinstance(text, str):
            return
        self._taking = True
        try:
            *finished, self._line = (self._line + text).split("\n")
            if len(self._line) > 2 * _LONGEST_LINE:
                self._line = _as_left_by_terminal(self._line)[:_LONGEST_LINE]
            for line in finished:
                self._take(self.stream_name, _as_left_by_terminal(line)[:_LONGEST_LINE])
        except (OSError, ValueError, TypeError, RuntimeError):
            self._line = ""
        finally:
            self._taking = False


def _ignore(stream: str, text: str) -> None:
    del stream, text


def _as_left_by_terminal(line: str) -> str:
    """What is seen of a line whose cursor went back to its start: later text over earlier text."""
    if "\r" not in line:
        return line
    seen = ""
    for part in line.split("\r"):
        seen = part + seen[len(part) :]
    return seen.rstrip(" ") if seen.strip(" ") else ""


def append_console_log(path: Path, lines: Sequence[tuple[float, Line]]) -> int:
    """Append lines to ``experiment.log``.

    Args:
        path: The file.
        lines: When each was finished (seconds since 1970), and the line.

    Returns:
        The file's length in bytes.

    Raises:
        OSError: The disk refuses; part of the lines may have been appended.
    """
    text = "".join(f"{_clock(when)} {_mark(line)}{line.text}\n" for when, line in lines)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
    with contextlib.closing(os.fdopen(fd, "ab", buffering=0)) as file:
        rest = memoryview(text.encode("utf-8", "replace"))
        while rest:
            rest = rest[file.write(rest) :]
        return os.fstat(fd).st_size


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _mark(line: Line) -> str:
    return "! " if line.stream == "stderr" else ""
