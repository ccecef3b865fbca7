"""How does a run begin without a signal handler of its own, where a framework has its own rules for signals?

Lightning installs its handler for a requeue only where nobody has one, and calls one for SIGTERM that it finds behind
its own. What it is told by a signal reaches the run all the same: through the calls that Lightning makes then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_signal_handlers"]

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT")


@contextmanager
def without_signal_handlers() -> Iterator[None]:
    """Put back, at the end, the handlers that were there at the beginning; in other threads nobody installs any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
