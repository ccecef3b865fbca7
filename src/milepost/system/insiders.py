"""What of the user's own works in the training process, beside the companion?

Tracker objects and hooks. They hear what the companion says, and the end of the run waits for them after it, out of the
same ``exit_timeout``. Of several ranks only the first has any, or a message would be sent once per rank.
"""

from __future__ import annotations

import os
import time

from milepost.companion.messages import FromCompanion, Hello, RuleFired, Saved
from milepost.core.config import ExperimentConfig
from milepost.core.events import Alerted, Described, Noticed, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say
from milepost.run import Run
from milepost.run.rule_calls import RuleCalls
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, LogWriter
from milepost.system.hooks import Hooks
from milepost.system.inside_trackers import InsideTrackers, given_objects

__all__ = ["Insiders"]


class Insiders:
    """The hooks, the tracker objects and the rules' functions of one run.

    Args:
        config: The run's settings.
        rank: Of this process.
    """

    def __init__(self, config: ExperimentConfig, rank: int) -> None:
        self._objects = given_objects(config.trackers) if rank == 0 else []
        self._hooks = Hooks(config.hooks if rank == 0 else (), self._notice)
        self._rules = RuleCalls(config.rules, self._notice)
        self._fired_early: list[RuleFired] = []  # before the run was there
        self._run: Run | None = None
        self._trackers: InsideTrackers | None = None
        self._log: LogWriter | DirectLog | None = None
        self._exit_timeout = config.exit_timeout
        self._deadline = 0.0
        self._process = os.getpid()

    def run_started(self, run: Run, log: LogWriter | DirectLog, layout: RunLayout, hello: Hello) -> None:
        """Begin to follow, and tell the hooks."""
        self._log = log
        if self._objects:
            from milepost.companion.guests import describe_run  # and with it what only a companion needs

            self._trackers = InsideTrackers(self._objects, describe_run(layout, hello), layout, self._notice)
            self._trackers.start()
        self._hooks.run_started(run)
        self._run = run
        while self._fired_early:
            self.hear(self._fired_early.pop(0))

    def hear(self, message: FromCompanion) -> None:
        """Take what the companion says. Never waits."""
        if isinstance(message, Saved):
            self._hooks.checkpoint_committed(CheckpointInfo.from_fields(message.info))
        elif isinstance(message, RuleFired):
            if self._run is None:
                self._fired_early.append(message)
                return
            alert = self._rules.hear(self._run, message)
            if alert is not None:
                self._hooks.alerted(alert)

    def alerted(self, alert: Alerted) -> None:
        """Take an alert; in a forked child nobody is told. Never waits."""
        if os.getpid() == self._process:
            self._hooks.alerted(alert)

    def check(self) -> None:
        """Say it, once, if a tracker object hangs. Never waits."""
        if self._trackers is not None:
            self._trackers.check()

    def before_end(self) -> None:
        """The last record is about to be written: what the tracker objects cost belongs before it."""
        self._deadline = time.monotonic() + self._exit_timeout
        if self._trackers is not None and self._log is not None:
            self._log.append(Described(fields={"tracker_cpu_seconds": self._trackers.cost()}))
        self._log = None

    def settle(self) -> None:
        """The companion has finished: let the tracker objects take the rest, and the hooks what happened."""
        if self._trackers is not None:
            self._trackers.finish(self._deadline)
        self._rules.settle(self._deadline)
        self._hooks.settle(self._deadline)

    def run_ended(self, end: StatusChanged) -> None:
        """Tell the hooks, last of all."""
        self._hooks.run_ended(end)

    def _notice(self, noticed: Noticed) -> None:
        say(noticed.message, cure=noticed.cure)
        if self._log is not None:
            self._log.append(noticed)
