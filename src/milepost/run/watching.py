"""How does a training show the norms of its gradients and parameters, cheaply and without a line in its loop?

A hook that runs before each step of the optimizer: after the backward pass, and after whatever was done to the
gradients. Every so many steps it measures; what it measured goes into the log when the next step begins, at the step
that the training has logged meanwhile, so that the numbers stand beside the loss of the same step.

**Invariants**: neither the model nor the optimizer is kept alive, nor changed. What goes wrong in here is said once and
ends the measuring, never the training.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from milepost.checkpoint.arguments import TrainingObjects
from milepost.core.errors import InvalidCallError, InvalidInputError

__all__ = ["Watcher", "WatchesModels", "watch"]

#: Logs named numbers at a step.
_Log = Callable[[Mapping[str, Any], int], None]


class Watcher:
    """Measures one model while its optimizer steps.

    Args:
        model: The ``torch.nn.Module``.
        optimizer: The ``torch.optim.Optimizer`` that trains it.
        every: How many steps there are from one measurement to the next.
        layers: Whether its top-level modules are told apart.
        log: Takes what was measured.
        last_step: The step last logged.
        failed: Told why nothing is measured any more.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        every: int,
        layers: bool,
        log: _Log,
        last_step: Callable[[], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        from milepost.checkpoint.norms import measure

        self._measure = measure
        self._model = weakref.ref(model)
        self._every = every
        self._layers = layers
        self._log = log
        self._last_step = last_step
        self._failed = failed
        self._steps = 0
        self._measured: dict[str, Any] = {}
        self._measured_after = -1
        self._off = False
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Any, arguments: Any, named: Any) -> None:  # noqa: ARG002 - torch's signature
        if self._off:
            return
        try:
            if self._last_step() != self._measured_after:
                self._log_measured()
            if self._steps % self._every == 0:
                self._measured = self._measure(self._model() if self._layers else None, optimizer)
                self._measured_after = self._last_step()
            self._steps += 1
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            self._off = True  # the hook itself stays: torch is walking over the hooks just now
            self._failed(error)

    def _log_measured(self) -> None:
        measured, self._measured = self._measured, {}
        if measured:
            self._log(measured, max(self._last_step(), 0))

    def close(self) -> None:
        """Log the last measurement, and watch no more."""
        self._hook.remove()
        if not self._off:
            self._off = True
            self._log_measured()


class WatchesModels(ABC):
    """The part of a run that watches a model."""

    _objects: TrainingObjects
    _log: Any
    _watcher: Watcher | None = None

    @abstractmethod
    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """Append the metrics of one step."""

    @abstractmethod
    def _refuse_elsewhere(self, call: str) -> None:
        """Refuse what only the process that started the run can do, while the run lives."""

    @abstractmethod
    def _notice(self, source: str, message: str, cure: str) -> None:
        """Say and record that the world went wrong."""

    def watch(self, model: Any, optimizer: Any = None, *, every: int = 10, layers: bool = False) -> None:
        """Log ``grad_norm``, ``param_norm`` and ``lr`` of every tenth optimizer step, without waiting for a device.

        The norms are 2-norms over all parameters that the optimizer trains, as it is about to use them: after
        ``clip_grad_norm_``, if you clip, and divided by the scale of a ``GradScaler``. They are logged when the next
        step begins, at the step that was logged meanwhile; where steps are logged more rarely, the newest measurement.

        Args:
            model: A ``torch.nn.Module``, bare or wrapped by DDP or ``torch.compile``.
            optimizer: The ``torch.optim.Optimizer`` that trains it; None: the one that :meth:`resume` was given.
            every: How many optimizer steps there are from one measurement to the next.
            layers: Also log ``grad_norm/<module>`` and ``param_norm/<module>`` of each top-level module.

        A second call replaces the first. Watching ends with the run.

        Raises:
            InvalidCallError: There is no optimizer, something else was given, or the run has ended.
            InvalidInputError: The optimizer trains another model, parameters are sharded, or ``every`` is below 1.
        """
        from milepost.checkpoint.norms import check_watched

        self._refuse_elsewhere("watch")
        optimizer = self._objects.optimizer if optimizer is None else optimizer
        if optimizer is None:
            raise InvalidCallError("watch has no optimizer", cure="pass it, or call resume(model, optimizer) before")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InvalidInputError(f"every is {every!r}", cure="give a whole number of at least 1")
        check_watched(model, optimizer)
        self._stop_watching()
        self._watcher = Watcher(
            model,
            optimizer,
            every=every,
            layers=layers,
            log=self.log,
            last_step=lambda: int(self._log.last_step),
            failed=self._watching_failed,
        )

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _watching_failed(self, error: BaseException) -> None:
        message = f"the model is not watched any more ({type(error).__name__}: {str(error)[:200]})"
        self._notice("watch", message, "the training is not touched; log the norms you need with run.log")


def watch(model: Any, optimizer: Any = None, *, every: int = 10, layers: bool = False) -> None:
    """As :meth:`milepost.Run.watch` of the one live run of this process; nothing under ``MILEPOST_MODE=disabled``.

    Raises:
        InvalidCallError: No run is live here, or several are.
    """
    from milepost.core.config import is_disabled
    from milepost.runs.endings import live

    runs = [run for run in live() if isinstance(run, WatchesModels)]
    if len(runs) == 1:
        runs[0].watch(model, optimizer, every=every, layers=layers)
    elif not is_disabled():
        found = f"{len(runs)} runs are live" if runs else "no run is live"
        cure = "call watch of the one that is meant" if runs else "call milepost.start(...) before"
        raise InvalidCallError(f"milepost.watch was called while {found} in this process", cure=cure)
