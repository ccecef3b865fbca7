"""What can one do with a run while it is alive?

``Run`` is the one implementation behind both doors: ``milepost.start(...)`` returns it, and the methods of
``ExperimentTrackingSystem`` are calls of it. It owns nothing that outlives the process: the log is shared memory that
the companion holds too, checkpoints are staged into an arena that the companion reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from milepost.checkpoint.arguments import TrainingObjects
from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Alerted, Described, Event, Line, Noticed, StatusChanged
from milepost.core.records import LoadReport, ResumePoint
from milepost.core.saying import say
from milepost.environment.ranks import StopAgreement
from milepost.environment.secrets import redact
from milepost.run.alerting import GivesAlerts
from milepost.run.ending import EndedLog, command_that_goes_on, end_as_said, without_secrets
from milepost.run.foreign import KnowsForeignCheckpoints
from milepost.run.forks import survive_forks
from milepost.run.logging_media import LogsMedia
from milepost.run.media import MediaDesk
from milepost.run.stopping import Stopping
from milepost.run.summing_up import SumsUp
from milepost.run.watching import WatchesModels
from milepost.run.worker import WorkerRun
from milepost.runs.console import ConsoleTee
from milepost.runs.endings import in_notebook, listen, status_of_exception, stop_listening
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, LogWriter

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer
    from milepost.run.resuming import Resumption

__all__ = ["Companion", "Run"]


class Companion(Protocol):
    """What a run needs of the process, or the thread, that works beside it."""

    def finish(self, timeout: float) -> list[str]:
        """Finish what is open; return in words what is left after ``timeout`` seconds."""

    def leave_child(self) -> None:
        """In a forked child: let go of what belongs to the parent."""

    def make_durable(self, position: int, deadline: float) -> bool:
        """Wait until the log is on disk up to ``position``; False if it is not by ``deadline``."""


class Run(LogsMedia, GivesAlerts, WatchesModels, KnowsForeignCheckpoints, SumsUp):
    """A live run. Made by :func:`milepost.start` or ``ExperimentTrackingSystem.start_experiment``, never directly.

    Attributes:
        id: ``<name>_<timestamp>``: the name of its folder.
        name: As given, with the template filled in.
        attempt: Counts the stays of the run: 1 at first, 2 after the first resume.
        checkpointer: The :class:`milepost.ModelCheckpointer` of this run.
    """

    def __init__(
        self,
        *,
        layout: RunLayout,
        name: str,
        attempt: int,
        config: ExperimentConfig,
        log: LogWriter | DirectLog,
        before_end: Callable[[], None],
        after_end: Callable[[StatusChanged], None],
        alerted: Callable[[Alerted], None],
        companion: Companion,
        checkpointer: ModelCheckpointer,
        stop: StopAgreement,
        resumption: Resumption,
    ) -> None:
        self.id = layout.experiment_id
        self.name = name
        self.attempt = attempt
        self.checkpointer = checkpointer
        self._layout = layout
        self._config = config
        self._log: LogWriter | DirectLog | WorkerRun | EndedLog = log
        self._before_end = before_end
        self._after_end = after_end
        self._alerted = alerted
        self._companion = companion
        self._stop = Stopping(
            stop, signals=resumption.signals, before_limit=config.stop_before_limit, notice=self._notice
        )
        self._resumption = resumption
        self._objects = TrainingObjects()
        self._described_model = False
        self._ended: StatusChanged | None = None
        self._child: WorkerRun | None = None
        self._media = MediaDesk(
            layout,
            resumption.rank,
            append=self._append,
            last_step=lambda: self._log.last_step,
            notice=partial(self._notice, "media"),
            make_durable=self._make_durable,
        )
        self._console = ConsoleTee(self._line) if config.capture_console else None
        if self._console is not None:
            self._console.install()
        listen(self)
        survive_forks(self)

    # ---------------------------------------------------------------- log

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """Append the metrics of one step. Takes about a microsecond; what it took survives ``kill -9``.

        Args:
            metrics: Numbers of Python or NumPy, 0-d tensors, or mappings of them (names are joined with ``/``). NaN and
                infinities are kept. What is no number is skipped with one warning per name.
            step: In any order; None means the last step + 1.
            epoch: Any number.

        Raises:
            InvalidCallError: ``metrics`` is no mapping, or ``step`` no integer.
        """
        self._log.log(metrics, step, epoch)

    @property
    def media_desk(self) -> MediaDesk | None:
        """Where things to look at are handed over; None once the run is over."""
        return None if self._is_over() else self._media

    def _make_durable(self, deadline: float) -> bool:
        if isinstance(self._log, WorkerRun):
            return self._log.make_durable(deadline)
        return isinstance(self._log, EndedLog) or self._companion.make_durable(self._log.position, deadline)

    def tag(self, *tags: str) -> None:
        """Add tags to the run."""
        for tag in tags:
            if not isinstance(tag, str) or not tag.strip():
                raise InvalidInputError(f"a tag is {tag!r}", cure="give a text that is not empty")
        self._resumption.tags += [redact(tag) for tag in tags if tag not in self._resumption.tags]
        self._append(Described(fields={"tags": list(self._resumption.tags)}))

    def note(self, text: str) -> None:
        """Write the run's note; it replaces the one before."""
        if not isinstance(text, str):
            raise InvalidCallError(f"note got {type(text).__name__}", cure="give a string")
        self._append(Described(fields={"notes": redact(text)}))

    def pause(self, reason: str = "") -> None:
        """Show the run as paused; it can go on with :meth:`unpause`, or be resumed later by another process."""
        self._append(StatusChanged(status="paused", reason=reason))

    def unpause(self) -> None:
        """Show the run as running again."""
        self._append(StatusChanged(status="running"))

    def _is_over(self) -> bool:
        """Whether the run has ended; what was to be logged is then counted as lost, and that is said once."""
        if isinstance(self._log, EndedLog):
            self._log.log({})
        return self._ended is not None

    def _append(self, event: Event, *, step: int | None = None) -> None:
        self._refuse_after_the_end()
        self._log.append(event, step=step)
        if isinstance(event, Alerted):
            self._alerted(event)

    def _refuse_after_the_end(self) -> None:
        if self._ended is not None:
            raise InvalidCallError(
                f"the run {self.id} has ended ({self._ended.status})", cure="start another one", kind="run-ended"
            )

    def _refuse_elsewhere(self, call: str) -> None:
        """Refuse what only the process that started the run can do, while the run lives."""
        self._refuse_after_the_end()
        if self._child is not None:
            raise InvalidCallError(
                f"{call}() was called in a forked child of the training",
                cure="call it in the process that started the run; a child can log",
                kind="forked-child",
            )

    def _line(self, stream: str, text: str) -> None:
        if self._ended is None:
            self._log.append(Line(stream=stream, text=redact(text)))

    def _notice(self, source: str, message: str, cure: str) -> None:
        say(message, cure=cure)
        self._log.append(Noticed(source=source, topic=message, message=message, cure=cure))

    # ---------------------------------------------------------------- checkpoints

    def resume(
        self,
        model: Any,
        optimizer: Any = None,
        scheduler: Any = None,
        *,
        scaler: Any = None,
        loader: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ResumePoint:
        """Restore the newest sound checkpoint of this run, or say "fresh, step 0"; remember the objects for saving.

        Walks everything once, so that what cannot be saved fails now. Restores weights, optimizer, scheduler, scaler,
        the random numbers of Python, NumPy and torch, and the position in the data; rewinds the run's history. Under
        torchrun every rank calls it.

        Args:
            model: A ``torch.nn.Module``, bare or wrapped by DDP or ``torch.compile``.
            optimizer: A ``torch.optim.Optimizer``.
            scheduler: A learning-rate scheduler.
            scaler: A ``torch.amp.GradScaler``.
            loader: A loader with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``); with any
                other the order of the data goes on, but the position in the epoch is not saved, and both say so.
            extra: Further objects by name: with ``state_dict`` and ``load_state_dict``, or plain values.

        Raises:
            InvalidInputError: Something cannot be saved; the message names its place.
            CorruptDataError: No sound checkpoint is left although there were some.
        """
        self._refuse_elsewhere("resume")
        self._objects = TrainingObjects(
            model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader, extra=extra
        )
        point = self._resumption.restore(self.checkpointer, **self._objects.as_arguments())
        if not self._resumption.fresh:
            self._append(self._resumption.rewound(point.checkpoint))
        if point.checkpoint is not None:
            self._log.last_step = point.checkpoint.step
            self.checkpointer.resumed_at(point.checkpoint.step)
        self._resumption.announce(self.id, self.attempt, point)
        return point

    def should_save(self, step: int) -> bool:
        """Whether to save now: ``save_frequency`` steps after the last save, never at 0; once after a signal."""
        if self._stop.decide(step) and not self._resumption.saved_for_stop:
            self._resumption.saved_for_stop = True
            return True
        if self.checkpointer.should_save(step):
            return True
        if self._objects.model is not None:
            self.checkpointer.prepare(self._objects)
        return False

    @property
    def should_stop(self) -> bool:
        """Whether a signal, or the job's time limit, asks to end; true at the same step on every rank."""
        return self._stop.tell(self._log.last_step)

    def ask_to_stop(self, reason: str) -> None:
        """Let ``should_stop`` turn true, on all ranks at one step. Unlike a signal, it asks for no checkpoint."""
        self._resumption.saved_for_stop = True
        self._stop.ask(reason)

    def save_checkpoint(
        self,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        epoch: float | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        is_best: bool = False,
        *,
        scaler: Any = None,
        loader: Any = None,
        extra: Mapping[str, Any] | None = None,
        pin: bool = False,
        durable: bool = False,
        busy: Literal["wait", "skip"] = "wait",
    ) -> Path | None:
        """Copy the state and return; the companion writes it. What is not given is what :meth:`resume` was given.

        The keyword arguments are those of :meth:`ModelCheckpointer.save_checkpoint`.

        Returns:
            The path of the file to come. It prints at once; opening it waits for the commit and raises if it failed.
            None if ``busy="skip"`` and the save before is still being written.

        Raises:
            InvalidCallError: There is no model, ``step`` is no integer, or the run has ended.
            InvalidInputError: Something cannot be saved; the message names its place.
        """
        self._refuse_elsewhere("save_checkpoint")
        objects = TrainingObjects(
            model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader, extra=extra
        ).completed_by(self._objects)
        if objects.model is None:
            raise InvalidCallError(
                "save_checkpoint has no model", cure="pass it, or call resume(model, ...) before the loop"
            )
        self._describe_model_once(objects.model)
        return self.checkpointer.save_checkpoint(
            **objects.as_arguments(),
            epoch=epoch,
            step=max(self._log.last_step, 0) if step is None else step,
            metrics=metrics,
            is_best=is_best,
            pin=pin,
            durable=durable,
            busy=busy,
            final=self._resumption.saved_for_stop,
        )

    def _describe_model_once(self, model: Any) -> None:
        if not self._described_model:
            from milepost.checkpoint.model_state import describe_model

            self._described_model = True
            self._append(Described(fields={"model": describe_model(model)}))

    def load_checkpoint(
        self,
        checkpoint_path: Any,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        device: Any = None,
        **options: Any,
    ) -> LoadReport:
        """Load into the objects given and change nothing else; see :meth:`ModelCheckpointer.load_checkpoint`."""
        return self.checkpointer.load_checkpoint(checkpoint_path, model, optimizer, scheduler, device, **options)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every save is committed.

        Raises:
            StorageError: A save failed.
            GaveUpWaitingError: ``timeout`` seconds were not enough.
        """
        if self._child is not None:
            self._refuse_elsewhere("wait")
        self.checkpointer.wait(timeout)

    # ---------------------------------------------------------------- the end

    def end(
        self, final_metrics: Mapping[str, Any] | None = None, *, status: str | None = None, reason: str = ""
    ) -> None:
        """End the run: waits, at most ``exit_timeout`` seconds, until all is written and every guest has it.

        Args:
            final_metrics: Goes to ``summary.json``.
            status: ``"completed"``, ``"failed"``, ``"stopped"``, ``"killed"``, ``"preempted"`` or ``"paused"``. None:
                completed; or, if ``should_stop`` was true, preempted after a scheduler's warning, else stopped.
            reason: One line.

        Raises:
            InvalidInputError: ``status`` is another word.
            InvalidCallError: ``final_metrics`` is no mapping, or ``reason`` no text.
        """
        end = end_as_said(final_metrics, "completed" if status is None else status, reason)
        self._finish(end, said=status is not None)

    def _finish(self, end: StatusChanged, *, said: bool = False) -> None:
        if self._ended is not None or self._child is not None:
            return
        end = end if said else self._stop.judged(end)
        if self._console is not None:
            self._console.remove()
        self._stop_watching()
        self._before_end()
        self.checkpointer.settle_copies()  # what is handed over behind the end would not be written
        self._log.append(without_secrets(end))
        self._ended = end
        stop_listening(self)
        left = self._companion.finish(self._config.exit_timeout)
        for what in left:
            say(f"{self.id}: not finished yet: {what}", cure="`milepost doctor` finishes it")
        log, self._log = self._log, EndedLog(self.id, self._log.last_step)
        log.close()
        self._after_end(end)
        if end.status == "preempted":
            say(f"{self.id} is preempted at step {log.last_step}; the same command goes on: {command_that_goes_on()}")

    def end_at_exit(self, end: StatusChanged) -> None:
        """The script is over (hook of the interpreter's exit)."""
        self._finish(end)

    def cell_failed(self, error: BaseException) -> None:
        """A notebook's cell raised: an event, not an end (hook of IPython)."""
        self._notice("notebook", f"a cell raised {type(error).__name__}: {redact(str(error))[:500]}", "")

    def signal_came(self, name: str) -> bool:
        """A watched signal arrived; True if the run goes on to save (hook, inside a signal handler)."""
        wanted = name in self._config.save_on_signal
        if self._ended is None:
            message = f"{name} came"
            self._log.append(Noticed(source="signal", topic=name, message=message, cured=wanted))
        if wanted:
            self._stop.ask_for_signal(name)
        else:
            self._stop.warned(name)
        return wanted

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._ended is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self._finish(StatusChanged(status="completed"))
        elif not (in_notebook() and isinstance(error, KeyboardInterrupt)):
            self._finish(status_of_exception(error))

    def __repr__(self) -> str:
        state = self._ended.status if self._ended is not None else "running"
        step, folder = self._log.last_step, self._layout.experiment
        return f"<Run {self.id}: {state}, step {step}, attempt {self.attempt}, {folder}>"

    # ---------------------------------------------------------------- other processes

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerRun.open, (self._layout.to_dict(), self.attempt, self._resumption.rank)

    def in_forked_child(self) -> None:
        """The child gets a log of its own; the parent's memory and socket are let go of (hook of ``os.fork``)."""
        if self._ended is not None:
            return
        self._companion.leave_child()
        self._child = WorkerRun.open(self._layout.to_dict(), self.attempt, self._resumption.rank)
        self._log = self._child
        if self._console is not None:
            self._console.remove()
