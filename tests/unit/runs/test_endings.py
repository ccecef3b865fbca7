"""How a script is over, as an exception says it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from milepost.runs.endings import in_notebook, status_of_exception


@pytest.mark.parametrize(
    ("error", "status", "exit_code", "reason"),
    [
        (KeyboardInterrupt(), "stopped", None, "interrupted (Ctrl-C)"),
        (SystemExit(), "completed", None, ""),
        (SystemExit(0), "completed", None, ""),
        (SystemExit(3), "failed", 3, "the script left with exit status 3"),
        (SystemExit("no data"), "failed", 1, "the script left with exit status 1"),
        (ValueError("x" * 5000), "failed", None, ("ValueError: " + "x" * 5000)[:1000]),
    ],
)
def test_an_exception_says_how_a_run_ends(error, status, exit_code, reason):
    told = status_of_exception(error)
    assert (told.status, told.exit_code, told.reason) == (status, exit_code, reason)


def test_this_process_is_no_notebook():
    assert not in_notebook()


LISTEN = """
    import sys, signal, os
    from milepost.runs import endings

    class Run:
        def __init__(self, goes_on=False): self.goes_on = goes_on
        def end_at_exit(self, end): print("end", end.status, end.exit_code, end.reason, flush=True)
        def cell_failed(self, error): print("cell")
        def signal_came(self, name): print("signal", name, flush=True); return self.goes_on
"""


def outcome(body: str) -> tuple[list[str], int]:
    code = textwrap.dedent(LISTEN) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    return done.stdout.splitlines(), done.returncode


@pytest.mark.parametrize(
    ("body", "printed", "code"),
    [
        ("endings.listen(Run())", ["end completed None "], 0),  # nobody else remembers it, and it is ended
        ("endings.listen(Run()); sys.exit(3)", ["end failed 3 the script left with exit status 3"], 3),
        ("endings.listen(Run()); 1 / 0", ["end failed None ZeroDivisionError: division by zero"], 1),
        ("run = Run(); endings.listen(run); endings.stop_listening(run)", [], 0),
        (
            """
            endings.listen(Run())
            try:
                sys.exit(3)
            except SystemExit:
                endings.listen(Run())  # the script goes on: another run begins
            """,
            ["end completed None "] * 2,
            0,
        ),
        (
            """
            import threading
            endings.listen(Run())
            thread = threading.Thread(target=sys.exit, args=(3,))  # ends a thread, not the script
            thread.start(); thread.join()
            """,
            ["end completed None "],
            0,
        ),
        (
            """
            sys.excepthook = lambda *_: print("mine", flush=True)
            endings.listen(Run())
            1 / 0
            """,
            ["mine", "end failed None ZeroDivisionError: division by zero"],
            1,
        ),
        (
            """
            endings.listen(Run())
            if os.fork() == 0:
                sys.exit(0)  # a child ends nothing
            os.wait()
            """,
            ["end completed None "],
            0,
        ),
    ],
)
def test_a_run_learns_how_its_script_ended(body, printed, code):
    assert outcome(body) == (printed, code)


@pytest.mark.parametrize(
    ("before", "goes_on", "printed", "code"),
    [
        ("", False, ["signal SIGTERM"], -15),
        ("", True, ["signal SIGTERM", "after", "end completed None "], 0),
        ("signal.signal(15, lambda n, f: print('mine', n, flush=True))", True, None, 0),
        ("signal.signal(15, lambda n, f: print('mine', n, flush=True))", False, None, 0),
        ("signal.signal(15, signal.SIG_IGN)", False, ["signal SIGTERM", "after", "end completed None "], 0),
    ],
)
def test_a_watched_signal_is_heard_and_then_does_what_it_did_before(before, goes_on, printed, code):
    body = f"""
    {before}
    endings.listen(Run({goes_on}))
    endings.watch_signals(("SIGTERM",))
    endings.watch_signals(("SIGTERM",))  # by a second run: chained once
    os.kill(os.getpid(), 15)
    print("after", flush=True)
    """
    expected = printed or ["signal SIGTERM", "mine 15", "after", "end completed None "]
    assert outcome(body) == (expected, code)


@pytest.mark.parametrize(
    ("taken_over", "printed"),
    [
        ("signal.signal(15, lambda n, f: print('theirs', n, flush=True))", ["signal SIGTERM", "theirs 15"]),
        (
            """
    ours = signal.getsignal(15)
    def composed(n, f):
        print('theirs', n, flush=True)
        ours(n, f)
    signal.signal(15, composed)
            """,
            ["signal SIGTERM", "theirs 15", "mine 15"],
        ),
        (
            "ours = signal.getsignal(15); signal.signal(15, print); signal.signal(15, ours)",
            ["signal SIGTERM", "mine 15"],
        ),
        ("signal.signal(15, signal.SIG_DFL)", ["signal SIGTERM"]),
    ],
    ids=["replaced", "composed", "put back", "reset"],
)
def test_whoever_takes_a_signal_over_is_chained_to_and_the_run_hears_it_once(taken_over, printed):
    body = f"""
    signal.signal(15, lambda n, f: print('mine', n, flush=True))
    endings.listen(Run(True))
    endings.watch_signals(("SIGTERM",))
    {taken_over}
    for step in range(3):
        endings.watch_signals(("SIGTERM",))
    os.kill(os.getpid(), 15)
    """
    assert outcome(body) == ([*printed, "end completed None "], 0)


def test_a_handler_that_raises_leaves_the_next_signal_to_be_heard():
    body = """
    def leave(n, f): raise ValueError
    signal.signal(15, leave)
    endings.listen(Run(True))
    endings.watch_signals(("SIGTERM",))
    for _ in range(2):
        try:
            os.kill(os.getpid(), 15)
        except ValueError:
            pass
    """
    assert outcome(body) == (["signal SIGTERM", "signal SIGTERM", "end completed None "], 0)


def test_watching_again_and_again_makes_no_chain_of_our_own():
    body = """
    endings.watch_signals(("SIGTERM",))
    ours = signal.getsignal(15)
    for _ in range(3):
        endings.watch_signals(("SIGTERM",))
    print(signal.getsignal(15) is ours)
    """
    assert outcome(body) == (["True"], 0)
