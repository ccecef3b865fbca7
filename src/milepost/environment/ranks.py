"""Which process of a distributed training is this, and how do all of them come to one answer?

Two questions need one answer on all ranks: which run they join (:func:`meet`), and at which step they stop after a
signal that reached only some of them (:class:`StopAgreement`). Both are settled without a collective, so a rank that
does not ask, because its user wrote ``if rank == 0:``, holds up nobody.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from milepost.core.errors import GaveUpWaitingError
from milepost.core.saying import say
from milepost.environment.exchange import Exchange, find_exchange
from milepost.environment.scheduler import slurm_task

__all__ = ["Ranks", "StopAgreement", "detect", "meet"]

#: Seconds between looks, at first and at most.
_LOOKS = (0.005, 0.1)
_HORIZON = 1.0
_PATIENCE_FOR_ANSWERS = 5.0
_PATIENCE_FOR_PROPOSAL = 15.0

#: How often this process met the others under a name: the second meeting must not find the value of the first.
_meetings: Counter[tuple[int, str]] = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Place of this process among the processes of one training; ``rank`` 0 leads."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def detect(environ: Mapping[str, str] = os.environ) -> Ranks:
    """Ask the process group, else what torchrun sets, else what ``srun`` sets, else be alone. Never imports torch.

    Several tasks of one ``srun`` are ranks if ``MASTER_ADDR`` says that they are to meet; without it they may as well
    be a sweep, of which each is a training of its own.
    """
    local_rank = _number(environ, "LOCAL_RANK") or 0
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size(), local_rank=local_rank)
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if rank is None or world_size is None:
        return _of_slurm(environ)
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank) if rank < world_size else Ranks()


def _of_slurm(environ: Mapping[str, str]) -> Ranks:
    task = slurm_task(environ)
    if task is None:
        return Ranks()
    if "MASTER_ADDR" not in environ:
        if task.rank == 0:
            say(
                f"each of the {task.tasks} tasks that srun started is a training of its own",
                cure="if they are ranks of one, set MASTER_ADDR, or start the run after init_process_group()",
            )
        return Ranks()
    return Ranks(rank=task.rank, world_size=task.tasks, local_rank=task.local_rank)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def meet(ranks: Ranks, name: str, value: Any = None, timeout: float = 30.0) -> Any:
    """Give rank 0's value to all ranks. Rank 0 leaves it and goes on; the others wait for it.

    Args:
        ranks: Who this process is.
        name: What the value is; shown if it does not come. The n-th meeting of a name finds rank 0's n-th value.
        value: On rank 0, small and writable as JSON; not looked at elsewhere.
        timeout: Seconds that ranks other than 0 wait.

    Returns:
        The value as JSON gives it back (a tuple is a list), the same on all ranks.

    Raises:
        GaveUpWaitingError: The value did not come in time, or rank 0 is gone.
        InvalidCallError: Ranks on several hosts have no process group yet.
    """
    if ranks.world_size == 1:
        return value
    exchange = find_exchange(os.environ)
    key = _key_of_next(ranks, f"meet/{name}")
    if ranks.rank == 0:
        content = json.dumps(value).encode()
        exchange.put(key, content)
    else:
        content = _wait(exchange, key, f"rank {ranks.rank} waited for rank 0 to tell {name!r}", timeout)
    return json.loads(content)


def _key_of_next(ranks: Ranks, name: str) -> str:
    _meetings[ranks.rank, name] += 1
    return f"{name}/{_meetings[ranks.rank, name]}"


def _wait(exchange: Exchange, key: str, doing: str, timeout: float) -> bytes:
    cure = "check that rank 0 makes the same call; unset RANK and WORLD_SIZE if this process is no rank of a training"
    deadline, pause = time.monotonic() + timeout, _LOOKS[0]
    while True:
        try:
            content = exchange.get(key)
        except (OSError, RuntimeError) as error:
            raise GaveUpWaitingError(f"{doing}, which is gone", cure=cure) from error
        if content is not None:
            return content
        if time.monotonic() >= deadline:
            raise GaveUpWaitingError(f"{doing} and gave up after {timeout:g} s", cure=cure)
        time.sleep(pause)
        pause = min(2 * pause, _LOOKS[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proposal:
    """All ``members`` stop at ``step``, if each of them learned it before it had passed that step."""

    round: int
    step: int
    members: tuple[int, ...]


class StopAgreement:
    """One decision for all ranks: after a signal on any of them, all stop at the same step.

    Rank 0 proposes a step about a second ahead. Every rank answers whether it learned that in time. Who reaches the
    step looks at the answers: all in time, and it stops; one too late, and nobody stops there, but at the step of the
    next proposal. Answers never change, so all ranks read the same ones.

    Args:
        ranks: Who this process is. Alone, it stops as soon as it is asked.
        topic: The same on all ranks, for example the run's id. The n-th agreement of a topic on one rank is the n-th on
            all of them, so a topic of its own keeps a run apart from those that only some ranks made.
    """

    def __init__(self, ranks: Ranks, topic: str = "") -> None:
        self._rank = ranks.rank
        self._world_size = ranks.world_size
        self._topic = _key_of_next(ranks, f"stop/{topic}")
        self._lock = threading.Lock()
        self._pace = _Pace()
        self._asked = False
        self._told = math.inf
        self._stopped = False
        self._round = 0
        self._proposal: _Proposal | None = None
        self._exchange = find_exchange(os.environ) if ranks.world_size > 1 else None
        if self._exchange is not None:
            self._exchange.put(f"{self._topic}/member/{self._rank}", b"")

    def request(self) -> None:
        """A signal came here. Only sets a flag, so a signal handler may call it."""
        self._asked = True

    def poll(self) -> None:
        """Talk to the other ranks; called by a helper thread a few times a second. Never waits, never raises."""
        exchange = self._exchange
        if exchange is None or self._stopped:
            return
        try:
            self._talk(exchange)
        except (OSError, RuntimeError):
            self._exchange = None  # whoever kept the place has ended: nobody is left to agree with

    def decide(self, step: int) -> bool:
        """Whether this rank stops after ``step``; once true, always true. Waits only at the proposed step, briefly."""
        with self._lock:
            self._pace.add(step)
            proposal = self._proposal
        if self._stopped:
            return True
        is_unheard = proposal is None and time.monotonic() - self._told > _PATIENCE_FOR_PROPOSAL
        if self._exchange is None or is_unheard:
            self._stopped = self._asked
        elif proposal is not None and step >= proposal.step:
            self._stopped = self._all_in_time(self._exchange, proposal)
        return self._stopped

    def _talk(self, exchange: Exchange) -> None:
        if self._asked and self._told == math.inf:
            exchange.put(f"{self._topic}/asked", b"")
            self._told = time.monotonic()
        proposal = self._proposal
        if proposal is not None:
            if any(late is not None for late in self._answers(exchange, proposal).values()):
                self._leave(proposal)
            return
        key = f"{self._topic}/proposal/{self._round}"
        if self._rank == 0 and (self._asked or exchange.get(f"{self._topic}/asked") is not None):
            exchange.put(key, json.dumps(self._propose(exchange)).encode())
        content = exchange.get(key)
        if content is not None:
            step, members = json.loads(content)
            self._answer(exchange, _Proposal(round=self._round, step=step, members=tuple(members)))

    def _propose(self, exchange: Exchange) -> tuple[int, list[int]]:
        topic = self._topic
        members = [r for r in range(self._world_size) if exchange.get(f"{topic}/member/{r}") is not None]
        answers = (exchange.get(f"{topic}/answer/{self._round - 1}/{r}") for r in members)
        reached = max([self._pace.step, *(json.loads(a) or 0 for a in answers if a is not None)])
        # A round that came too late for somebody was too short, so each is twice as far ahead as the one before.
        return reached + (self._pace.steps_in(_HORIZON) << self._round), members

    def _answer(self, exchange: Exchange, proposal: _Proposal) -> None:
        """Say null for "in time", else the step that was already done."""
        with self._lock:
            late = self._pace.step if self._pace.step >= proposal.step else None
            if late is None:
                self._proposal = proposal
            else:
                self._round += 1
        exchange.put(f"{self._topic}/answer/{proposal.round}/{self._rank}", json.dumps(late).encode())

    def _answers(self, exchange: Exchange, proposal: _Proposal) -> dict[int, int | None]:
        found = {r: exchange.get(f"{self._topic}/answer/{proposal.round}/{r}") for r in proposal.members}
        return {r: json.loads(content) for r, content in found.items() if content is not None}

    def _leave(self, proposal: _Proposal) -> None:
        with self._lock:
            if self._proposal is proposal:
                self._proposal = None
                self._round += 1

    def _all_in_time(self, exchange: Exchange, proposal: _Proposal) -> bool:
        deadline = time.monotonic() + _PATIENCE_FOR_ANSWERS
        while True:
            try:
                answers = self._answers(exchange, proposal)
            except (OSError, RuntimeError):
                return True
            if any(late is not None for late in answers.values()):
                self._leave(proposal)
                return False
            silent = sorted(set(proposal.members) - set(answers))
            if not silent:
                return True
            if time.monotonic() > deadline:
                say(f"stopping at step {proposal.step} although ranks {silent} did not answer")
                return True
            time.sleep(_LOOKS[0])


class _Pace:
    """The last step done, and how many steps a second are done, over the last one to two seconds."""

    def __init__(self) -> None:
        self.step = -1
        self._marks: list[tuple[float, int]] = []

    def add(self, step: int) -> None:
        now = time.monotonic()
        self.step = max(self.step, step)
        if not self._marks or now - self._marks[-1][0] >= _HORIZON:
            self._marks = [*self._marks[-1:], (now, self.step)]

    def steps_in(self, seconds: float) -> int:
        """At least 1. Slow steps need no more: a proposal that comes too late for a rank is made again."""
        if not self._marks:
            return 1
        since, step = self._marks[0]
        elapsed = time.monotonic() - since
        return max(1, math.ceil((self.step - step) / elapsed * seconds)) if elapsed > 0 else 1
