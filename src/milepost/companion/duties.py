"""What is done for a run beside its training, whether in a companion process or in a thread?

Checkpoints are committed and verified, guests are fed, ``experiment.log`` and ``metadata.json`` are kept, environment
and code are captured, and at the end the projections are made from the log. What happens is recorded in a log of its
own beside the trainer's: readers merge them.

**Invariants**: only rank 0 feeds guests and keeps the run's files. A guest never holds up a checkpoint, nor the other
way round: each works in a thread of its own.

**On crash**: a later companion, or ``milepost doctor``, goes on from the cursors; the projections are made again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from milepost.checkpoint.advice import Advisor
from milepost.checkpoint.backup import copy_checkpoint
from milepost.checkpoint.catalog import mark_verified, refresh, scan
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.retention import RetentionRule, newest_first
from milepost.companion.consequences import Consequences
from milepost.companion.guests import describe_run, follow_rules, make_followers
from milepost.companion.media_encoder import MediaEncoder
from milepost.companion.messages import FromCompanion, Hello, Saved, SaveFailed, SaveOver, Told
from milepost.companion.rulebook import RuleBook, entries_of
from milepost.companion.sampling import Sampling
from milepost.companion.saver import Saver
from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged, Described, Event, Noticed
from milepost.core.saying import logger
from milepost.environment.capture import TrainerFacts, capture
from milepost.environment.code import capture_code
from milepost.io.locks import OwnedLock
from milepost.io.process import ends_its_container
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.projections import write_projections
from milepost.runs.segment import new_log_id
from milepost.trackers.follower import Follower

__all__ = ["Duties"]

_LONGEST_FOR_OWN_FILES = 10.0
_SHARE_OF_MEDIA = 0.7
_IN_A_CONTAINER = Noticed(
    source="checkpoint",
    topic="container",
    message="if this training is killed, its whole container dies, with any checkpoint that is still being written",
    cure='staging="spool" keeps that one too, durable=True waits for it; the one before is safe in any case',
)


class Duties:
    """The work beside one training process.

    Args:
        hello: Which run, whose log, what is wanted.
        emit: Takes what the training process should hear; never waits.
        role: Who we are in our own log: ``"companion"`` or ``"doctor"``.
        may_feed: Cleared while guests must wait because the log has to be drained first.
    """

    def __init__(
        self,
        hello: Hello,
        emit: Callable[[FromCompanion], None],
        *,
        role: str = "companion",
        may_feed: threading.Event | None = None,
    ) -> None:
        self.layout = RunLayout.from_dict(hello.layout)
        self._hello = hello
        self._emit = emit
        self._lock = threading.Lock()
        self.unprotected_since = hello.unprotected_since
        self._uncopied: int | None = None  # the newest save that has no second copy
        self._refusal = ""
        self._hurried = threading.Event()
        self._advisor = Advisor(self.notice)
        log_id = new_log_id()
        self.own_lock = OwnedLock(self.layout.log_lock(log_id))
        self.own_lock.acquire()
        self._log = DirectLog(self.layout, log_id)
        begin_log(self._log, role=role, attempt=hello.attempt, rank=hello.rank, world_size=hello.world_size)
        backup = hello.settings.get("backup_dir")
        self._backup = Path(backup) if backup else None
        self._saved_differences = False
        self._saver = Saver(
            RetentionRule.of(hello.settings),
            self._report,
            self._save_failed,
            self._save_over,
            hurry=self._hurried.is_set,
            backup=self._backup,
            written=self._advisor.written,
        )
        self._keeper: Follower | None = None
        self._guests: list[Follower] = []
        self._rules: tuple[RuleBook, Follower] | None = None
        if hello.rank == 0:
            run = describe_run(self.layout, hello)
            self._keeper, self._guests = make_followers(
                self.layout, hello.settings, run, self.notice, self._tell, may_feed
            )
            entries = entries_of(hello.settings)
            if entries:
                respond = Consequences(self.layout, self.record, self._emit)
                self._rules = follow_rules(self.layout, entries, respond, run, self.notice, may_feed)
        # Where nobody works on the run, what every rank left is taken.
        self._encoder = MediaEncoder(self.layout, None if role == "doctor" else hello.rank, self, may_work=may_feed)
        self._sampling = Sampling(hello, self.record)
        self._capturing: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow the log, and capture what this attempt runs in."""
        self._encoder.start()
        self._sampling.start()
        for follower in self._followers():
            follower.start()
        if self._hello.rank == 0 and self._hello.launch == 1 and self._hello.facts:
            self._capturing = threading.Thread(target=self._capture, name="milepost-capture", daemon=True)
            self._capturing.start()

    def _followers(self) -> list[Follower]:
        house = [one for one in (self._rules and self._rules[1], self._keeper) if one is not None]
        return [*house, *self._guests]

    # ---------------------------------------------------------------- recording

    def record(self, event: Event, step: int | None = None) -> int:
        """Append to our own log; the place of the record."""
        with self._lock:
            return self._log.append(event, step=step)

    def sync(self) -> None:
        """Bring our own log to the disk.

        Raises:
            StorageError: It refuses.
        """
        with self._lock:
            self._log.sync()

    def notice(self, noticed: Noticed) -> None:
        """Record that something went wrong, or is mended, and say it once."""
        self.record(noticed)
        text = f"{noticed.message}: {noticed.cure}" if noticed.cure else noticed.message
        logger.warning("%s", text)
        self._tell(text)

    def _tell(self, text: str) -> None:
        self._emit(Told(text=text))

    def _capture(self) -> None:
        """Environment and code, as they are now: the user may edit a file in a minute."""
        facts = TrainerFacts(**self._hello.facts)
        fields: dict[str, Any] = {"environment": capture(facts)}
        if self._hello.settings.get("capture_code", True):
            layout = self.layout
            ours = (layout.experiment_dir, layout.checkpoint_dir, layout.logs_dir, layout.metrics_dir)
            fields["code"] = capture_code(facts.cwd, layout.code, script=facts.script, leave_out=ours).to_dict()
        self.record(Described(fields=fields))

    # ---------------------------------------------------------------- checkpoints

    def save(self, number: int, job: SaveJob, view: memoryview) -> None:
        """Write a staged snapshot; ``view`` stays untouched until the save is reported."""
        self._advisor.staged(job)
        if number == 1 and self._hello.settings.get("staging") == "memory" and ends_its_container(self._hello.pid):
            self.notice(_IN_A_CONTAINER)
        self._saved_differences |= job.delta and not job.standalone
        self._saver.submit(number, job, view)

    def hurry(self) -> None:
        """The training is gone: what is still to be written is made safe first, and small no more."""
        self._hurried.set()

    def _report(self, number: int, change: CheckpointChanged) -> None:
        self.record(change, change.step)
        if change.action == "verified" and change.reason:
            self._copy_failed(number, change)
        if change.action != "committed":
            return
        self._emit(Saved(number=number, info=change.info))
        if self.unprotected_since is not None:
            self.unprotected_since = None
            self.notice(_unprotected(f"checkpoints are written again (step {change.step})", "", None, cured=True))

    def _copy_failed(self, number: int, change: CheckpointChanged) -> None:
        before, self._uncopied = self._uncopied, number
        if before is None:
            message = f"checkpoint of step {change.step}: {change.reason}"
            self.notice(Noticed(source="checkpoint", topic="backup", message=message, cure="mend backup_dir"))

    def _save_failed(self, number: int, job: SaveJob, error: MilepostError) -> None:
        self._emit(SaveFailed(number=number, what=error.what, cure=error.cure, kind=error.kind))
        self.refused(job.step, os.path.basename(job.path), error)

    def refused(self, step: int, filename: str, error: MilepostError) -> None:
        """Record that there is no checkpoint of ``step``, and say so if that is news."""
        self.record(CheckpointChanged(step=step, action="failed", filename=filename, reason=str(error)), step)
        if self.unprotected_since is not None and error.kind == self._refusal:
            return
        self.unprotected_since = step if self.unprotected_since is None else self.unprotected_since
        self._refusal = error.kind
        since = self.unprotected_since
        message = f"checkpoint of step {step} was not saved ({error.what}); training is unprotected since step {since}"
        self.notice(_unprotected(message, error.cure, since, cured=False))

    def _save_over(self, number: int) -> None:
        if self._uncopied is not None and self._uncopied < number:
            self._uncopied = None
            message = "checkpoints get their second copy again"
            self.notice(Noticed(source="checkpoint", topic="backup", message=message, cured=True))
        self._emit(SaveOver(number=number))

    # ---------------------------------------------------------------- the end

    def beat(self) -> None:
        """Renew the heartbeats, for readers on other hosts; write what had to wait."""
        self.own_lock.touch()
        self._log.catch_up()
        with contextlib.suppress(OSError):
            os.utime(self.layout.log_lock(self._hello.log_id))

    def check(self) -> None:
        """Say it, once, if a guest hangs."""
        for follower in self._followers():
            follower.check()
        if self._rules is not None:
            self._rules[0].check()

    def finish(self, deadline: float, waiting: Callable[[str], None]) -> list[str]:
        """Finish everything; guests get until ``deadline`` (``time.monotonic()``), checkpoints as long as they take.

        The trainer's log must be complete on disk.

        Returns:
            What is left for ``milepost doctor``, in words.
        """
        while not self._saver.finish(1.0):
            waiting(self._saver.doing)
        self._let_the_last_load_alone()
        if self._capturing is not None:
            self._capturing.join(max(0.1, min(5.0, deadline - time.monotonic())))
        self._sampling.stop()
        left = self._encode_the_rest(deadline, waiting)
        if self._rules is not None:
            # What they find belongs into the run's own files, and to the guests.
            self._rules[1].finish(max(deadline, time.monotonic() + _LONGEST_FOR_OWN_FILES))
        for follower in self._followers():
            follower.hurry()
        if self._keeper is not None:
            # The run's own files come first: no guest can then keep a person from them.
            self._keeper.finish(max(deadline, time.monotonic() + _LONGEST_FOR_OWN_FILES))
            with self._lock:
                write_projections(self.layout)
        for guest in self._guests:
            while time.monotonic() < deadline and not guest.join(0.5):
                waiting(guest.name)
        # A parked guest has said why; what is left of the others must be named.
        unfinished = [guest for guest in self._guests if not guest.finish(deadline) and guest.state.phase != "parked"]
        return left + [guest.name for guest in unfinished]

    def _encode_the_rest(self, deadline: float, waiting: Callable[[str], None]) -> list[str]:
        """Guests want to hear of every media file, and keep a share of the time for themselves."""
        now = time.monotonic()
        until = now + (deadline - now) * _SHARE_OF_MEDIA
        self._encoder.hurry()
        while time.monotonic() < until and not self._encoder.join(0.5):
            waiting(self._encoder.name)
        return [] if self._encoder.finish(until) else ["logged media that are not encoded"]

    def _let_the_last_load_alone(self) -> None:
        """The newest checkpoint of a run that is over is the one that goes elsewhere: without its keyframe."""
        if not self._saved_differences or self._hello.rank or self._hurried.is_set():
            return
        from milepost.checkpoint.standalone import rewrite_alone

        own = (i for i in scan(self.layout.checkpoints).infos if i.experiment_id == self.layout.experiment_id)
        newest = next(iter(newest_first(list(own))), None)
        if newest is None or not newest.base:
            return
        try:
            alone = rewrite_alone(newest.path)
            mark_verified(alone.path)
            refresh(alone.path.parent)
            if self._backup is not None:
                copy_checkpoint(replace(alone, verified=True), self._backup)
        except (MilepostError, OSError) as error:
            message = f"{newest.filename} still needs {newest.base} beside it ({error})"
            self.notice(Noticed(source="checkpoint", topic="alone", message=message, cure="keep both files together"))
        else:
            reason = f"loads without {newest.base} now"
            fields = replace(alone, verified=True).to_fields()
            changed = CheckpointChanged(
                step=alone.step, action="committed", filename=alone.filename, reason=reason, info=fields
            )
            self.record(changed, alone.step)
            logger.info("%s %s", alone.filename, reason)

    def close(self) -> None:
        """Close our own log and give its lock back."""
        with self._lock:
            self._log.close()
        self.own_lock.release(unlink=True)


def _unprotected(message: str, cure: str, since: int | None, *, cured: bool) -> Noticed:
    return Noticed(source="checkpoint", topic="unprotected", message=message, cure=cure, cured=cured, since_step=since)
