"""What does the process do that is going to be killed?

It trains nothing: it starts or resumes a run, logs what :mod:`torture.content` says, saves tensors that it says, and
reports each call before and after. It runs in a fork of a process that has only imported, so a kill costs milliseconds
of preparation instead of seconds.

Small segments make the log change its segment hundreds of times a second, where a real training does it once in
minutes: that is where a kill has most to hit.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Literal

import torch

import milepost
from milepost.core.errors import StorageError
from milepost.system import launch
from torture import planted
from torture.claims import Reporter
from torture.content import STAMP, metrics_at, tensor_at
from torture.flavours import FLAVOURS, FlavourName

__all__ = ["Gate", "Operation", "Work", "parameter_shapes", "work"]

Operation = Literal["train", "log", "end", "resume"] | FlavourName

SEGMENT = 128 << 10
_RECORDS_OF_ONE_SEGMENT = 700  # a segment takes about 550 of ours, so this many cross its end
_GROUP = 50
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one worker is to do.

    Attributes:
        folder: The store.
        seed: Of the content.
        attempt: Number of this attempt at the store.
        operation: ``"train"`` until told to end; the others do one operation between two gates.
        flavour: How it saves.
        save_every: Steps between two checkpoints of ``"train"``.
        settle: Whether the operation waits until the companion has done its part.
        compression: Whether checkpoints are encoded.
    """

    folder: str
    seed: int
    attempt: int
    operation: Operation = "train"
    flavour: FlavourName = "save"
    save_every: int = 100
    settle: bool = False
    compression: bool = True


class Gate:
    """Holds the worker until the harness lets it go on: a byte of shared memory, so asking costs no system call."""

    def __init__(self) -> None:
        self._byte = mmap(-1, 1)

    def open(self, number: int) -> None:
        """Let the worker through gate ``number`` and all before it."""
        self._byte[0] = number

    def passed(self, number: int) -> bool:
        """Whether gate ``number`` is open."""
        return self._byte[0] >= number

    def wait(self, number: int) -> None:
        """Wait until gate ``number`` is open."""
        while not self.passed(number):
            time.sleep(0.001)


class _Model(torch.nn.Module):
    """Parameters of several sizes: one with blocks of its own, others packed together."""

    stamp: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(256, 256)
        self.head = torch.nn.Linear(256, 8)
        self.register_buffer(STAMP, torch.zeros(3, dtype=torch.int64))


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters, by name."""
    return {name: tuple(parameter.shape) for name, parameter in _Model().named_parameters()}


class _Optimizer(torch.optim.AdamW):
    """An optimizer whose step sets everything to the content of the step that is due.

    The hooks of ``torch.optim.Optimizer`` are called as for any other: that is where an overlapped copy is awaited.
    """

    update: Callable[[], None]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # an update has no closure
        """Set the content."""
        self.update()


class _Training:
    """The objects of a training, whose content is a function of attempt and step."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.model = _Model()
        self.optimizer = _Optimizer(self.model.parameters(), lr=1e-3)
        for parameter in self.model.parameters():
            state = self.optimizer.state[parameter]
            state["step"] = torch.tensor(0.0)
            state |= {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
        self.fill(0)

    def fill(self, step: int) -> None:
        """Set everything to its content at ``step`` of this attempt, as an optimizer does."""
        self.optimizer.update = functools.partial(self._fill, step)
        self.optimizer.step()

    def _fill(self, step: int) -> None:
        place = (self._work.seed, self._work.attempt, step)
        with torch.no_grad():
            self.model.stamp.copy_(torch.tensor(place))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(tensor_at(*place, name, tuple(parameter.shape))))
                state = self.optimizer.state[parameter]
                state["step"].fill_(float(step))
                for moment in _MOMENTS:
                    content = tensor_at(*place, f"{name}.{moment}", tuple(parameter.shape))
                    state[moment].copy_(torch.from_numpy(content))

    def difference(self, step: int) -> str:
        """What, after a restore, is not the content of the checkpoint of ``step``; empty if all is right."""
        seed, attempt, found = self.model.stamp.tolist()
        if (seed, found) != (self._work.seed, step):
            return f"the restored checkpoint is of step {found}, not of {step}"
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            for label, tensor in ((name, parameter), *((f"{name}.{m}", state[m]) for m in _MOMENTS)):
                content = tensor_at(seed, attempt, step, label, tuple(parameter.shape))
                if not torch.equal(tensor.detach(), torch.from_numpy(content)):
                    return f"{label} is not what was saved at step {step}"
        return ""


class _Life:
    """One attempt, from its start to its end or its kill."""

    def __init__(self, work: Work, report: Reporter, gate: Gate) -> None:
        self._work = work
        self._say = report.say
        self._gate = gate
        self._training = _Training(work)
        self._run: Any = None
        self._step = 0

    def live(self) -> None:
        operations: dict[Operation, Callable[[], None]] = {
            "train": self._train,
            "log": self._log_across_segments,
            "end": self._end,
            "prune": self._prune,
        }
        if self._work.operation == "resume":
            self._between_gates(self._begin_again)
            self._end()
            return
        self._begin()
        if self._work.operation == "train":
            self._train()
            return
        self._log(20)
        for _ in range(FLAVOURS[self._work.flavour].saves_before):
            self._save_and_wait()
        if self._work.operation == "prune":
            self._end()
        self._between_gates(operations.get(self._work.operation, self._save_twice))
        if self._work.operation not in {"end", "prune"}:
            self._end()

    def _between_gates(self, operation: Callable[[], None]) -> None:
        self._say("ready")
        self._gate.wait(1)
        operation()
        self._say("done")
        self._gate.wait(2)

    def _begin_again(self) -> None:
        self._begin()
        if self._work.settle:
            self._save_and_wait()  # the companion has started when it has written a checkpoint

    def _save_and_wait(self) -> None:
        self._log(1)
        self._save()
        self._wait()

    def _wait(self) -> None:
        try:
            self._run.wait()
            self._say("committed")
        except StorageError as error:
            if "two companion processes died" not in error.what:
                raise
            self._say("given-up")  # whether two were killed is for the harness to know

    def _begin(self) -> None:
        work = self._work
        settings = {"max_checkpoints": 3, "compression": work.compression, **FLAVOURS[work.flavour].settings}
        self._run = milepost.start(
            "torture",
            hyperparameters={"seed": work.seed},
            resume="auto",
            root=work.folder,
            tensorboard_dir=None,
            capture_code=False,
            **settings,
        )
        self._say("started", self._run.id)
        point = self._run.resume(self._training.model, self._training.optimizer)
        self._say("resumed", point.step)
        self._step = point.step
        if not point.fresh and (difference := self._training.difference(point.step - 1)):
            self._say("complaint", difference)

    def _log(self, steps: int) -> None:
        for _ in range(steps):
            self._say("log", self._step)
            self._run.log(metrics_at(self._work.seed, self._work.attempt, self._step), self._step, self._work.attempt)
            self._say("logged", self._step)
            self._step += 1

    def _save(self) -> None:
        step = self._step - 1
        self._training.fill(step)
        self._say("save", step)
        path = self._run.save_checkpoint(step=step, epoch=self._work.attempt)
        self._say("saved", os.path.basename(str(path)))

    def _train(self) -> None:
        saves = 0
        while not self._gate.passed(1):
            self._log(1)
            if self._step % self._work.save_every == 0:
                self._save()
                saves += 1
                if saves % 3 == 1:
                    self._wait()
            time.sleep(0.0002)
        self._end()

    def _log_across_segments(self) -> None:
        """Reported in groups: single lines would be most of the system calls."""
        end = self._step + _RECORDS_OF_ONE_SEGMENT
        while self._step < end:
            first, last = self._step, self._step + _GROUP - 1
            self._say("log", first, last)
            for step in range(first, last + 1):
                self._run.log(metrics_at(self._work.seed, self._work.attempt, step), step, self._work.attempt)
            self._say("logged", first, last)
            self._step = last + 1
        if self._work.settle:
            time.sleep(1.2)  # a little more than the companion's interval between two syncs

    def _save_twice(self) -> None:
        for _ in range(2):
            self._log(1)
            self._save()
        if self._work.settle:
            self._wait()

    def _prune(self) -> None:
        """What ``milepost checkpoints prune`` does, in this process, after the run has ended."""
        from milepost.checkpoint.pruning import prune
        from milepost.checkpoint.retention import RetentionRule

        prune(self._run.checkpointer.folder, self._run.id, RetentionRule(keep_newest=1), lambda change: None)

    def _end(self) -> None:
        self._say("end")
        self._run.end()
        self._say("ended")


def work(work: Work, report_fd: int, gate: Gate) -> None:
    """Be the worker, in a forked child; never returns."""
    status = 1
    try:
        _leave_the_terminal(work.folder)
        torch.set_num_threads(1)
        _use_small_segments(launch)
        planted.plant_in_trainer()
        reporter = Reporter(report_fd)
        try:
            _Life(work, reporter, gate).live()
            status = 0
        except BaseException as error:
            traceback.print_exc()
            reporter.say("complaint", f"{type(error).__name__}: {error}".replace("\n", " ")[:500])
    finally:
        sys.stderr.flush()
        os._exit(status)


def _use_small_segments(module: Any) -> None:
    module.LogWriter = functools.partial(module.LogWriter, segment_size=SEGMENT)


def _leave_the_terminal(folder: str) -> None:
    """What the worker prints goes to a file beside the store, where a failure can be looked at."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    output = os.open(f"{folder}/worker.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
