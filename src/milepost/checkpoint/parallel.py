"""How is a list of pieces worked off by several threads, each with its own buffers?"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["available_cores", "share_out"]

T = TypeVar("T")


def available_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


class _Shares(Generic[T]):
    """One iterator for all threads; it ends for all of them once one has failed."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self.stopped = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            if self.stopped:
                raise StopIteration
            return next(self._items)


def share_out(items: list[T], work: Callable[[Iterator[T]], None], *, threads: int) -> None:
    """Run ``work`` in ``threads`` threads, which take the ``items`` from one another.

    Raises:
        Exception: What the first failing thread raised; the others end after the piece in hand.
    """
    shares = _Shares(items)

    def guarded(_: int) -> None:
        try:
            work(shares)
        except BaseException:
            shares.stopped = True
            raise

    threads = min(threads, len(items))
    if threads <= 1:
        work(shares)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="milepost-checkpoint") as pool:
        try:
            results = pool.map(guarded, range(threads))
        except RuntimeError:  # the interpreter is shutting down and starts no thread any more
            guarded(0)
            results = iter(())
        for _ in results:
            pass
