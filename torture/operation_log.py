"""In which order did a process write, sync and name its files?

Recorded by strace while the process works, parsed into a list. A kill cannot show a missing sync, because the kernel
keeps what it was given; the order of the calls can.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Operation", "Recorder", "is_available", "parse"]

_CALLS = "openat,write,pwrite64,pwritev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
Action = Literal["create", "write", "sync", "rename", "unlink"]

_LINE = re.compile(r"^(?P<thread>\d+) +(?P<rest>.*)$")
_RESUMED = re.compile(r"^<\.\.\. (?P<call>\w+) resumed>(?P<rest>.*)$")
_CALL = re.compile(r"^(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)")
_FD = re.compile(r"^\d+<(?P<path>(?:[^<>\\]|\\.)*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One successful call.

    Attributes:
        action: What it did. A hard link is a rename whose source stays.
        path: The file, or for ``rename`` its new name; absolute.
        source: The old name, for ``rename``.
        data: The beginning of what was written.
        begun: Place in the recording at which the call was entered.
        ended: Place at which it returned.
    """

    action: Action
    path: str
    source: str = ""
    data: bytes = b""
    begun: int
    ended: int


def is_available() -> bool:
    """Whether strace is installed."""
    return shutil.which("strace") is not None


class Recorder:
    """Records a process and its threads until it is stopped.

    Args:
        pid: The process.
        output: File of the recording.
    """

    def __init__(self, pid: int, output: Path) -> None:
        self._output = output
        self._strace = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "512", "-e", f"trace={_CALLS}", "-o", str(output), "-p", str(pid)],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._strace.stderr is not None
        while b"attached" not in (line := self._strace.stderr.readline()):
            if not line:
                raise RuntimeError("strace could not attach")

    def stop(self) -> list[Operation]:
        """Let the process go; what it did."""
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait(30)
        time.sleep(0)
        return parse(self._output.read_text(errors="replace"))


def parse(text: str) -> list[Operation]:
    """The successful operations of a recording by ``strace -f -y``, in the order of their ends."""
    under_way: dict[str, tuple[int, str]] = {}
    found: list[Operation] = []
    for place, line in enumerate(text.splitlines()):
        matched = _LINE.match(line)
        if matched is None:
            continue
        thread, rest = matched["thread"], matched["rest"]
        begun = place
        if rest.endswith("<unfinished ...>"):
            under_way[thread] = (place, rest.removesuffix("<unfinished ...>"))
            continue
        if (resumed := _RESUMED.match(rest)) is not None:
            if thread not in under_way:
                continue
            begun, start = under_way.pop(thread)
            rest = start + resumed["rest"].lstrip()
        operation = _operation(rest, begun, place)
        if operation is not None:
            found.append(operation)
    return found


def _operation(text: str, begun: int, ended: int) -> Operation | None:
    matched = _CALL.match(text)
    if matched is None or matched["result"] in {"?", ""} or int(matched["result"]) < 0:
        return None
    call, arguments = matched["call"], matched["arguments"]
    descriptor = _FD.match(arguments)
    path = _unescaped(descriptor["path"]).decode(errors="surrogateescape") if descriptor is not None else ""
    texts = [_unescaped(text) for text in _TEXT.findall(arguments)]
    match call:
        case "write" | "pwrite64" | "pwritev":
            data = texts[0] if texts else b""
            return Operation(action="write", path=path, data=data, begun=begun, ended=ended)
        case "ftruncate":
            return Operation(action="write", path=path, begun=begun, ended=ended)
        case "fsync" | "fdatasync":
            return Operation(action="sync", path=path, begun=begun, ended=ended)
        case "openat" if "O_CREAT" in arguments and texts:
            return Operation(action="create", path=_absolute(texts[0]), begun=begun, ended=ended)
        case "rename" | "renameat" | "renameat2" | "link" | "linkat" if len(texts) >= 2:
            source, target = _absolute(texts[0]), _absolute(texts[1])
            return Operation(action="rename", path=target, source=source, begun=begun, ended=ended)
        case "unlink" | "unlinkat" if texts:
            return Operation(action="unlink", path=_absolute(texts[0]), begun=begun, ended=ended)
        case _:
            return None


def _absolute(path: bytes) -> str:
    return os.path.normpath(path.decode(errors="surrogateescape"))


def _unescaped(text: str) -> bytes:
    return text.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1", "replace")
