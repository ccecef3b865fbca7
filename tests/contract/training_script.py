"""Runs a small training script as a user would: as a file, in an empty folder, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

SOURCE = Path(__file__).parents[2] / "src"


class Script:
    """A script that is running; it prints a line when it has reached a point that the test waits for."""

    running: ClassVar[list[Script]] = []

    def __init__(
        self, folder: Path, body: str, *, name: str = "train.py", stdin: bool = False, **environment: str
    ) -> None:
        path = folder / name
        content = textwrap.dedent(body)
        if not path.exists() or path.read_text() != content:  # another process may be about to read it
            path.write_text(content)
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=folder,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"} | environment,
        )

        Script.running.append(self)

    @staticmethod
    def end_all() -> None:
        """Kill what a test left running."""
        while Script.running:
            process = Script.running.pop().process
            process.kill()
            process.wait(60)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not sent any more
                        stream.close()

    def wait_for_line(self, wanted: str) -> list[str]:
        """Lines printed up to and including the one that starts with ``wanted``."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line.rstrip("\n"))
            if line.startswith(wanted):
                return seen
        messages = self.finish()[1]
        raise AssertionError(f"the script ended ({self.exit_code}) without {wanted!r}: {seen} {messages}")

    def tell(self, text: str) -> None:
        """Write to its standard input (made with ``stdin=True``)."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the signal and wait for the end."""
        self.process.send_signal(number)
        self.finish()

    def finish(self) -> tuple[str, str]:
        """What it printed after the last line read, once it has ended."""
        return self.process.communicate(timeout=120)

    @property
    def exit_code(self) -> int:
        return self.process.wait(120)


def run_script(folder: Path, body: str, **environment: str) -> tuple[str, str, int]:
    """Run a script to its end; what it printed, its messages, its exit code."""
    script = Script(folder, body, **environment)
    out, err = script.finish()
    return out, err, script.exit_code
