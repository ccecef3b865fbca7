"""How is a run told to a guest that may be slow, absent, broken or hang for ever?

One daemon thread per guest walks the road of :mod:`milepost.trackers.delivery` again and again. What goes wrong there
is said once, with its cure, and retried with growing waits; then the guest is *parked*: nothing is lost, the cursor is
kept, and one more attempt is made when the run ends. A later process goes on from the cursor (``milepost doctor``).

**Invariants**: one process at a time tells a guest a run; it holds the lock beside the cursor. No exception leaves the
thread, and no call here waits for the guest, ``finish`` excepted, which waits until its deadline at the longest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milepost.core.errors import MilepostError
from milepost.core.events import Noticed
from milepost.io.locks import OwnedLock
from milepost.trackers.delivery import Delivery, Pace
from milepost.trackers.feed import OpenSource
from milepost.trackers.protocol import RunDescription, Tracker

__all__ = ["Follower", "FollowerState"]

_log = logging.getLogger(__name__)

_CATCHES_UP = "nothing is lost: it is tried again, and `milepost doctor` delivers what is left"
#: While the run ends the waits between attempts are at most this many seconds.
_LAST_BACKOFF = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerState:
    """What a guest is doing.

    Attributes:
        phase: ``parked`` has given up until the run ends; ``finished`` has everything.
        behind: Whether the log held more when it was last read.
        delivered: Records of the log that the guest acknowledged in this process.
        waiting: Seconds that the call it is in has taken so far.
        error: Why it is retrying or parked.
        cpu_seconds: Processor time of the follower's thread, the calls of the guest included, when it last returned.
    """

    phase: Literal["following", "retrying", "parked", "finished"]
    behind: bool
    delivered: int
    waiting: float
    error: str
    cpu_seconds: float = 0.0


class Follower:
    """Brings a run to one guest.

    Args:
        name: The guest, as in ``Noticed.source``.
        build: Makes a tracker; called again after every failure. Called in the follower's thread.
        run: What the tracker is opened with.
        open_source: Opens the run's log at a cursor.
        cursor_path: Where the cursor is kept.
        notice: Takes what a person should know; called from the follower's thread, and from ``check`` and ``finish``.
        pace: Sizes and waits.
        catches_up: The cure to say where a guest takes nothing.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Tracker],
        run: RunDescription,
        *,
        open_source: OpenSource,
        cursor_path: Path,
        notice: Callable[[Noticed], None],
        pace: Pace | None = None,
        catches_up: str = _CATCHES_UP,
    ) -> None:
        self.name = name
        self._build = build
        self._run = run
        self._open_source = open_source
        self._cursor_path = cursor_path
        self._lock = OwnedLock(cursor_path.with_suffix(".lock"))
        self._notice = notice
        self._pace = pace or Pace()
        self._catches_up = catches_up
        self._delivery: Delivery | None = None
        self._wake = threading.Event()
        self._finishing = False
        self._phase: Literal["following", "retrying", "parked", "finished"] = "following"
        self._behind = True
        self._delivered = 0
        self._failures = 0
        self._error = ""
        self._cpu_seconds = 0.0
        self._hanging_said = False
        self._thread = threading.Thread(target=self._live, name=f"milepost-{name}", daemon=True)

    @property
    def state(self) -> FollowerState:
        """What the guest is doing now."""
        return FollowerState(
            phase=self._phase,
            behind=self._behind,
            delivered=self._delivered,
            waiting=self._waiting(),
            error=self._error,
            cpu_seconds=self._cpu_seconds,
        )

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the log: look now instead of at the next poll."""
        self._wake.set()

    def check(self) -> None:
        """Say it, once, if the guest has been in one call for longer than the pace's patience. Never waits."""
        if self._waiting() > self._pace.patience and not self._hanging_said:
            self._hanging_said = True
            self._say("hanging", f"{self.name} has not answered for {self._waiting():.0f} s", self._catches_up)

    def hurry(self) -> None:
        """The log is complete: deliver the rest and tell the guest the end. Never waits."""
        self._finishing = True
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread, at most ``seconds``; True once it has ended, with everything delivered or not."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def finish(self, deadline: float) -> bool:
        """Deliver the rest and tell the guest the end.

        Args:
            deadline: ``time.monotonic()`` until which to wait.

        Returns:
            Whether the guest has everything. If not, its thread may still be running; it is a daemon.
        """
        self.hurry()
        self.join(max(0.0, deadline - time.monotonic()))
        if self._phase == "finished":
            return True
        if not self._error and not self._hanging_said:
            self._say("unfinished", f"{self.name} has not taken all of the run yet", self._catches_up)
        return False

    def _waiting(self) -> float:
        since = None if self._delivery is None else self._delivery.calling_since
        return 0.0 if since is None else time.monotonic() - since

    def _live(self) -> None:
        try:
            self._try_until_done()
        finally:
            self._lock.release(unlink=True)

    def _try_until_done(self) -> None:
        while True:
            last = self._finishing
            try:
                if not self._is_alone(last=last):
                    return
                self._follow()
            except (Exception, SystemExit) as error:  # noqa: BLE001  a guest's fault must end nowhere but here
                self._failed(error)
                self._abandon()
                if not self._try_again(error, last=last):
                    return
            else:
                self._phase = "finished"
                return

    def _is_alone(self, *, last: bool) -> bool:
        """Wait until no other process tells this guest the run; False if one still does when the run ends."""
        self._cursor_path.parent.mkdir(parents=True, exist_ok=True)
        while not self._lock.acquire():
            if last:
                return False
            last = self._finishing
            self._pause(self._pace.poll_every)
        return True

    def _follow(self) -> None:
        delivery = Delivery(
            self._build,
            self._run,
            open_source=self._open_source,
            cursor_path=self._cursor_path,
            on_progress=self._progressed,
            pace=self._pace,
        )
        self._delivery = delivery
        while True:
            last = self._finishing
            self._behind = delivery.advance()
            self._cpu_seconds = time.thread_time()
            if self._behind:
                continue
            if last:
                delivery.finish()
                return
            self._pause(self._pace.poll_every)

    def _abandon(self) -> None:
        if self._delivery is not None:
            self._delivery.abandon()
            self._delivery = None

    def _try_again(self, error: BaseException, *, last: bool) -> bool:
        """Wait out the backoff; False if this guest is given up."""
        backoff = self._pace.backoff
        self._phase = "retrying"
        if isinstance(error, MilepostError) or self._failures > len(backoff):
            self._phase = "parked"
            if last:
                return False
            while not self._finishing:
                self._pause(None)
            return True
        if self._finishing:
            time.sleep(min(backoff[self._failures - 1], _LAST_BACKOFF))
        else:
            self._pause(backoff[self._failures - 1])
        return True

    def _pause(self, seconds: float | None) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _progressed(self, records: int) -> None:
        self._delivered += records
        self._phase = "following"
        self._failures = 0
        if self._error:
            self._error = ""
            self._say("delivery", f"{self.name} takes the run again", cured=True)
        if self._hanging_said:
            self._hanging_said = False
            self._say("hanging", f"{self.name} answers again", cured=True)

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        _log.debug("%s failed", self.name, exc_info=error)
        said = bool(self._error)
        self._error = f"{type(error).__name__}: {error}"
        if said:
            return
        if isinstance(error, MilepostError):
            self._say("delivery", error.what, error.cure)
        else:
            self._say("delivery", f"{self.name} does not take the run ({self._error})", self._catches_up)

    def _say(self, topic: str, message: str, cure: str = "", *, cured: bool = False) -> None:
        try:
            self._notice(Noticed(source=self.name, topic=topic, message=message, cure=cure, cured=cured))
        except Exception:  # noqa: BLE001  whoever takes notices must not be able to end the delivery
            _log.exception("a notice of %s could not be given: %s", self.name, message)
