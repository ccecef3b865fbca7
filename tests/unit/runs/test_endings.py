"""Does a run learn how its script ended, whatever happens around the end?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[3] / "src"

LISTENER = """
import os, signal, sys
from milepost.runs.endings import listen, watch_signals

class Listener:
    def end_at_exit(self, end): print("end:", end.status, end.reason)
    def cell_failed(self, error): pass
    def signal_came(self, name): print("came:", name); return True

listener = Listener()
listen(listener)
"""


def ending_of(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-u", "-c", LISTENER + script],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_a_script_that_runs_through_completes() -> None:
    assert ending_of("") == "end: completed \n"


def test_a_script_that_raises_fails_with_the_exception() -> None:
    assert ending_of("raise ValueError('loss is NaN')") == "end: failed ValueError: loss is NaN\n"


def test_an_exception_that_cannot_be_put_into_words_is_still_a_failure() -> None:
    script = """
class Odd(Exception):
    def __str__(self): raise RuntimeError("a signal handler raised while the text was made")
raise Odd
"""
    assert ending_of(script) == "end: failed Odd\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_a_signal_to_the_whole_group_reaches_the_run_and_leaves_its_forked_workers_alive() -> None:
    script = """
watch_signals(("SIGUSR1",))
child = os.fork()
if child == 0:
    signal.raise_signal(signal.SIGUSR1)
    os._exit(7)
print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.raise_signal(signal.SIGUSR1)
"""
    assert ending_of(script) == "child: 7\ncame: SIGUSR1\nend: completed \n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_forked_worker_can_still_be_terminated() -> None:
    script = """
watch_signals(("SIGTERM",))
child = os.fork()
if child == 0:
    signal.raise_signal(signal.SIGTERM)
    os._exit(7)
print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert ending_of(script) == "child: -15\nend: completed \n"
