"""Why should a training stop before it is done, and what does that make of its end?

A signal, the time limit of its job, or whoever else asks: the ranks agree on a step, ``should_stop`` turns true there,
and a loop that leaves for it has not completed. Whoever ends the run without saying how is therefore taken at what the
loop was told: a run that was cut short must go on under ``resume="auto"``, which never goes on with a completed one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from milepost.core.events import RunStatus, StatusChanged
from milepost.environment.ranks import StopAgreement
from milepost.environment.scheduler import is_preemption_signal, job_identity, seconds_left
from milepost.runs.endings import watch_signals

__all__ = ["Stopping"]

_LOOK_EVERY = 0.1  # seconds: Python takes some ten microseconds to say who handles a signal
_UNSAID = "should_stop was true"  # another rank, or a rule, knows why


class Stopping:
    """Whether this run is to stop, and why.

    Args:
        agreement: What all ranks decide together.
        signals: Names of the signals that the run hears of.
        before_limit: Minutes before the job's time limit at which to stop; None: the limit is not looked at.
        notice: Takes source, message and cure of what a person should know.
        environ: Where the scheduler says what it knows.
    """

    def __init__(
        self,
        agreement: StopAgreement,
        *,
        signals: tuple[str, ...] = (),
        before_limit: float | None = None,
        notice: Callable[[str, str, str], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._agreement = agreement
        self._signals = signals
        self._notice = notice
        self._environ = environ
        self._before_limit = before_limit
        self._ask_at = math.inf
        self._look_at = 0.0
        self._reason = ""
        self._preempted = False
        self._told = False
        watch_signals(signals)
        if before_limit is not None:
            self._look_for_the_limit(before_limit)

    def _look_for_the_limit(self, minutes: float) -> None:
        left = seconds_left(self._environ, time.time())
        if left is not None:
            self._ask_at = time.time() + left - 60 * minutes
        elif job_identity(self._environ) is not None:
            cure = "let the scheduler send a signal ahead of it, and name that in save_on_signal"
            self._notice("limit", "this job does not say when its time is over (SLURM_JOB_END_TIME)", cure)

    def ask(self, reason: str, *, preempted: bool = False) -> None:
        """Ask all ranks to stop; the first reason stands. Only sets flags, so a signal handler may call it."""
        self._reason = self._reason or reason
        self._preempted |= preempted
        self._agreement.request()

    def ask_for_signal(self, name: str) -> None:
        """A signal asks; inside a job some are the scheduler's warning. May be called by a signal handler."""
        self.ask(f"{name} came", preempted=is_preemption_signal(name, self._environ))

    def warned(self, name: str) -> None:
        """A signal came that asks for nothing, but may explain the end. May be called by a signal handler."""
        if is_preemption_signal(name, self._environ):
            self._preempted = True
            self._reason = self._reason or f"{name} came"

    def decide(self, step: int) -> bool:
        """Whether to stop after ``step``; once true, always true."""
        now = time.time()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            watch_signals(self._signals)  # whoever took one over meanwhile, as submitit does, is chained to
        if now >= self._ask_at:
            self._ask_at = math.inf
            reason = f"{self._before_limit:g} minutes are left before the time limit of the job"
            self._notice("limit", reason, "the training is asked to save and to stop")
            self.ask(reason, preempted=True)
        return self._agreement.decide(step)

    def tell(self, step: int) -> bool:
        """:meth:`decide`, asked by a loop that means to leave; whether it does is judged at the end."""
        self._told |= self.decide(step)
        return self._told

    def judged(self, end: StatusChanged) -> StatusChanged:
        """The end of a run of which nobody said how it ended: what was cut short has not completed."""
        if end.status == "completed" and self._told:
            status: RunStatus = "preempted" if self._preempted else "stopped"
            return replace(end, status=status, reason=self._reason or _UNSAID)
        if end.status == "failed" and end.exit_code is not None and self._preempted:
            return replace(end, status="preempted", reason=f"{self._reason}; {end.reason}")
        return end
