"""What does the training process itself do when a rule found something?

The companion judges and says so; here it is told to the person, the run's own list of tags follows, the run is asked to
stop, and the user's function is called. That function gets a thread of its own, made for the first call: it may take
its time, and no hanging mail server holds up the training, nor the thread that hears the companion.

**Invariants**: each finding is acted on once, however often companions report it. What a function raises becomes one
notice per rule, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from milepost.companion.messages import RuleFired
from milepost.core.events import Alerted, Noticed
from milepost.core.rules import Alert, Rule
from milepost.core.saying import say
from milepost.run.alerting import say_alert

if TYPE_CHECKING:
    from milepost.run.live import Run

__all__ = ["RuleCalls"]

_log = logging.getLogger(__name__)


class RuleCalls:
    """The training's part of the rules of one run.

    Args:
        rules: As the user gave them.
        notice: Takes what a person should know; called from the thread of the function that raised.
    """

    def __init__(self, rules: Sequence[Rule], notice: Callable[[Noticed], None]) -> None:
        self._rules = rules
        self._notice = notice
        self._known: set[tuple[str, str, str]] = set()
        self._raised: set[int] = set()
        self._calls: queue.SimpleQueue[tuple[int, Alert] | None] = queue.SimpleQueue()
        self._caller: threading.Thread | None = None

    def hear(self, run: Run, fired: RuleFired) -> Alerted | None:
        """Act on a finding; the alert, or None if it is known. Never waits."""
        alert = Alerted(**fired.alert)
        key = (alert.rule, alert.title, alert.cause)
        if key in self._known or fired.rule >= len(self._rules):
            return None
        self._known.add(key)
        say_alert(alert.title, alert.text, alert.level)
        rule = self._rules[fired.rule]
        if rule.mark is not None and not run.ended:
            run.tag(rule.mark)
        if rule.stop:
            run.ask_to_stop(alert.title)
        if rule.call is not None:
            self._put(fired.rule, _as_told(run.id, alert, fired))
        return alert

    def settle(self, deadline: float) -> None:
        """Let the functions return, until ``deadline`` (``time.monotonic()``)."""
        if self._caller is None:
            return
        self._calls.put(None)
        self._caller.join(max(0.0, deadline - time.monotonic()))
        if self._caller.is_alive():
            say("a rule's function has not returned; the run ends without it", cure="raise exit_timeout for it")

    def _put(self, number: int, alert: Alert) -> None:
        if self._caller is None:
            self._caller = threading.Thread(target=self._call_on, name="milepost-rules", daemon=True)
            self._caller.start()
        self._calls.put((number, alert))

    def _call_on(self) -> None:
        while (call := self._calls.get()) is not None:
            number, alert = call
            function = self._rules[number].call
            assert function is not None
            try:
                function(alert)
            except (Exception, SystemExit) as error:  # noqa: BLE001  its fault must end nowhere but here
                self._failed(number, error)

    def _failed(self, number: int, error: BaseException) -> None:
        _log.debug("the function of %s raised", self._rules[number], exc_info=error)
        if number not in self._raised:
            self._raised.add(number)
            message = f"the function of {self._rules[number]} raised {type(error).__name__}: {error} (said once)"
            topic = str(self._rules[number])
            self._notice(Noticed(source="rules", topic=topic, message=message, cure="mend it; the run goes on"))


def _as_told(run_id: str, alert: Alerted, fired: RuleFired) -> Alert:
    return Alert(
        run=run_id,
        rule=alert.rule,
        title=alert.title,
        text=alert.text,
        level=alert.level,
        step=alert.step,
        metric=fired.metric,
        value=fired.value,
        actions=tuple(alert.actions),
    )
