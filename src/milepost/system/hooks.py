"""Who is told when a run starts, commits a checkpoint, alerts, and ends?

The user's own objects, by whichever of the four methods they have. The start and the end are told on the thread that
starts and ends the run. What happens between comes from a quiet thread that is made for the first such call: a hook may
take its time there, upload a checkpoint or call ``run.wait()``, and neither the training nor the companion's client
waits for it.

**Invariants**: calls of one run come in the order of what happened, never two at once; ``run_ended`` is the last. What
a hook raises becomes one notice per method, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from milepost.core.events import Alerted, Noticed, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say

__all__ = ["Hooks"]

_log = logging.getLogger(__name__)


class Hooks:
    """The hooks of one run.

    Args:
        hooks: Objects with any of ``run_started(run)``, ``checkpoint_committed(run, info)``, ``alerted(run, alert)``,
            ``run_ended(run, end)``.
        notice: Takes what a person should know; called from the thread of the hook that raised.
    """

    def __init__(self, hooks: Sequence[Any], notice: Callable[[Noticed], None]) -> None:
        self._hooks = hooks
        self._notice = notice
        self._run: Any = None
        self._said: set[tuple[int, str]] = set()
        self._happened: queue.SimpleQueue[tuple[str, object] | None] = queue.SimpleQueue()
        self._teller: threading.Thread | None = None

    def run_started(self, run: Any) -> None:
        """The run can be used; its log holds nothing of the user's yet."""
        self._run = run
        self._tell("run_started")

    def checkpoint_committed(self, info: CheckpointInfo) -> None:
        """A checkpoint is complete on disk. Never waits."""
        self._put("checkpoint_committed", info)

    def alerted(self, alert: Alerted) -> None:
        """The run alerted. Never waits."""
        self._put("alerted", alert)

    def settle(self, deadline: float) -> None:
        """Let what happened be told, until ``deadline`` (``time.monotonic()``)."""
        if self._teller is None:
            return
        self._happened.put(None)
        self._teller.join(max(0.0, deadline - time.monotonic()))
        if self._teller.is_alive():
            say("a hook has not returned; the run ends without it", cure="raise exit_timeout if it needs longer")

    def run_ended(self, end: StatusChanged) -> None:
        """All is written, and the run can only be read."""
        self._tell("run_ended", end)

    def _put(self, method: str, what: object) -> None:
        if not any(hasattr(hook, method) for hook in self._hooks):
            return
        if self._teller is None:
            self._teller = threading.Thread(target=self._tell_on, name="milepost-hooks", daemon=True)
            self._teller.start()
        self._happened.put((method, what))

    def _tell_on(self) -> None:
        while (happened := self._happened.get()) is not None:
            self._tell(*happened)

    def _tell(self, method: str, *what: object) -> None:
        for hook in self._hooks:
            call = getattr(hook, method, None)
            if call is None:
                continue
            try:
                call(self._run, *what)
            except (Exception, SystemExit) as error:  # noqa: BLE001  a hook's fault must end nowhere but here
                self._raised(hook, method, error)

    def _raised(self, hook: object, method: str, error: BaseException) -> None:
        _log.debug("%s of %r raised", method, hook, exc_info=error)
        if (id(hook), method) in self._said:
            return
        self._said.add((id(hook), method))
        where = f"{getattr(hook, '__name__', type(hook).__name__)}.{method}"
        message = f"the hook {where} raised {type(error).__name__}: {error} (said once)"
        self._notice(Noticed(source="hooks", topic=where, message=message, cure="mend it; the run goes on without it"))
