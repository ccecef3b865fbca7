"""How does a run learn that its script is over, and how?

Hooks of the process, installed once and shared by all live runs, each chaining to what was there before: the last
exception, the end of the interpreter, and the signals a run wants to hear of. In IPython an exception ends a cell, not
the run.

What no hook sees (``kill -9``, a crash in C, the power) is seen by the companion.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol

from milepost.core.events import StatusChanged

__all__ = ["Endable", "in_notebook", "listen", "live", "status_of_exception", "stop_listening", "watch_signals"]


class Endable(Protocol):
    """What the hooks need of a live run."""

    def end_at_exit(self, end: StatusChanged) -> None:
        """The interpreter is leaving."""

    def cell_failed(self, error: BaseException) -> None:
        """A notebook's cell raised; the run stays open."""

    def signal_came(self, name: str) -> bool:
        """A watched signal arrived; return whether the run goes on for a while and ends by itself.

        Runs inside a signal handler: append a record, set a flag, no more.
        """


@dataclass(slots=True)
class _Hooks:
    """The process-wide state: who listens, how the script is ending, and which signals are being handled just now.

    ``telling``: of each such signal, whether a run goes on after it.
    """

    live: set[Endable] = field(default_factory=set)
    installed: bool = False
    in_forked_child: bool = False
    pending: StatusChanged | None = None
    watched: set[str] = field(default_factory=set)
    telling: dict[str, bool] = field(default_factory=dict)


#: Signals that ask for something and are not meant to end anybody.
_ONLY_ASK = frozenset({"SIGUSR1", "SIGUSR2"})

_hooks = _Hooks()


def listen(run: Endable) -> None:
    """Tell ``run`` how the script ends; it is kept alive until it has ended, also if nobody else remembers it."""
    _hooks.live.add(run)
    _hooks.pending = None  # whatever was raised before was caught: the script goes on
    if not _hooks.installed:
        _hooks.installed = True
        _chain_excepthook()
        _chain_exit()
        atexit.register(_at_exit)
        os.register_at_fork(after_in_child=_forget_runs_of_parent)
        shell = _ipython()
        if shell is not None:
            shell.events.register("post_run_cell", _after_cell)


def _forget_runs_of_parent() -> None:
    _hooks.live.clear()
    _hooks.in_forked_child = True


def live() -> list[Endable]:
    """The runs of this process that have not ended."""
    return list(_hooks.live)


def stop_listening(run: Endable) -> None:
    """``run`` has ended by itself."""
    _hooks.live.discard(run)


def status_of_exception(error: BaseException) -> StatusChanged:
    """How a run ends when ``error`` leaves its script or its ``with`` block."""
    if isinstance(error, KeyboardInterrupt):
        return StatusChanged(status="stopped", reason="interrupted (Ctrl-C)")
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == 0:
            return StatusChanged(status="completed")
        return StatusChanged(status="failed", reason=f"the script left with exit status {code}", exit_code=code)
    text = "".join(traceback.format_exception(error))
    return StatusChanged(status="failed", reason=f"{type(error).__name__}: {error}"[:1000], traceback=text[-20_000:])


def _chain_excepthook() -> None:
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        # First without the text: a signal handler may raise while it is made (torch has one for dead workers).
        _hooks.pending = StatusChanged(status="failed", reason=kind.__name__)
        _hooks.pending = status_of_exception(error)
        previous(kind, error, where)

    sys.excepthook = hook


def _chain_exit() -> None:
    """The interpreter tells its exit hooks no status, so it is noted where it is given."""
    previous = sys.exit

    def leave(status: Any = None, /) -> NoReturn:
        if threading.current_thread() is threading.main_thread() and not in_notebook():
            _hooks.pending = status_of_exception(SystemExit(status))
        previous(status)

    sys.exit = leave


def _at_exit() -> None:
    for run in list(_hooks.live):
        run.end_at_exit(_hooks.pending or StatusChanged(status="completed"))


def _ipython() -> Any:
    """The running IPython shell, or None; never imports IPython."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def in_notebook() -> bool:
    """Whether this process is an interactive IPython session, where scripts do not end but cells do."""
    return _ipython() is not None


def _after_cell(result: Any) -> None:
    error = result.error_in_exec or result.error_before_exec
    if error is not None and not isinstance(error, KeyboardInterrupt):
        for run in list(_hooks.live):
            run.cell_failed(error)


def watch_signals(names: tuple[str, ...]) -> None:
    """Tell every live run when one of these signals arrives, then do what would have been done without us.

    A handler that was there is called. The default action follows only if no run wants to go on for a while to save.
    Python allows handlers in the main thread only: elsewhere nothing is installed. Asked again, it costs a look per
    signal, and chains to whoever has taken a signal over since.

    Schedulers and torchrun signal whole process groups. In a forked child, such as a loader's worker, SIGUSR1 and
    SIGUSR2 are therefore passed over: their default action would end it, and the training with it.
    """
    if not names or threading.current_thread() is not threading.main_thread():
        return
    for name in names:
        number = getattr(signal, name, None)
        if number is None:
            continue
        present = signal.getsignal(number)
        taken_by_other_than_python = present is None and name in _hooks.watched
        if not isinstance(present, _SignalHandler) and not taken_by_other_than_python:
            _hooks.watched.add(name)
            signal.signal(number, _SignalHandler(name, present))


class _SignalHandler:
    """Tells the runs, then does what was done before it was installed.

    A chain may hold several of these, with strangers between them: the outermost tells the runs, the others pass on.
    """

    def __init__(self, name: str, previous: Any) -> None:
        self._name = name
        self._previous = previous
        self._is_default = previous in {signal.SIG_DFL, signal.default_int_handler}

    def __call__(self, received: int, frame: FrameType | None) -> None:
        outermost = self._name not in _hooks.telling
        if outermost:
            heard = [run.signal_came(self._name) for run in list(_hooks.live)]
            _hooks.telling[self._name] = any(heard)
        try:
            self._pass_on(received, frame, goes_on=_hooks.telling[self._name])
        finally:
            if outermost:
                del _hooks.telling[self._name]

    def _pass_on(self, received: int, frame: FrameType | None, *, goes_on: bool) -> None:
        if callable(self._previous) and not (self._is_default and goes_on):
            self._previous(received, frame)
        elif self._previous == signal.SIG_DFL and not goes_on and not self._spares_children():
            signal.signal(received, signal.SIG_DFL)
            os.kill(os.getpid(), received)

    def _spares_children(self) -> bool:
        return _hooks.in_forked_child and self._name in _ONLY_ASK
