"""What does a call to a log mean, whatever the log's bytes lie in?

Off the fast path: is the call one that can be meant, which of the values are numbers, and does it all fit one record?
"""

from __future__ import annotations

import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any

from msgspec import msgpack

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import BigIntegers, ClockSet, Event, Identified, body_of
from milepost.io.process import this_process
from milepost.runs.segment import LARGEST_PAYLOAD, salt_of
from milepost.runs.values import (
    NeedsWalk,
    OnBadValue,
    PlainMetrics,
    encode_hook,
    fits_64_bits,
    plain_body,
    plain_metrics,
    refuse_bad_value,
)

__all__ = ["ClockKeeper", "Deferral", "RunLog", "begin_log"]

#: Fetches a device value later: called with the tensor, the sequence number of its record, and the metric's name.
Deferral = Callable[[Any, int, str], None]

#: What the encoder raises at values that need a closer look.
ENCODING_FAILED = (TypeError, ValueError, OverflowError, RecursionError)
#: The "sequence number" of a record that could not be kept.
NOT_KEPT = -1


class RunLog(ABC):
    """What both kinds of log share: judging the call and the values, off the fast path.

    Attributes:
        last_step: The step last logged, -1 before the first; ``step=None`` means one more.
        lost: How many records could not be kept.
        deferred: Fetches device values; None makes a call wait for the device.
    """

    __slots__ = ("_encode", "_on_bad_value", "_salt", "_strict", "_told", "deferred", "last_step", "log_id", "lost")

    largest_payload = LARGEST_PAYLOAD

    def __init__(self, log_id: bytes, on_bad_value: OnBadValue, *, strict: bool, deferred: Deferral | None) -> None:
        self.log_id = log_id
        self.deferred = deferred
        self.last_step = -1
        self.lost = 0
        self._salt = salt_of(log_id)
        self._encode = msgpack.Encoder(enc_hook=encode_hook).encode
        self._on_bad_value = on_bad_value
        self._strict = strict
        self._told: set[str] = set()

    @property
    @abstractmethod
    def position(self) -> int:
        """Sequence number that the next record will have at the least."""

    @abstractmethod
    def _publish(self, payload: bytes) -> int:
        """Store a record; its sequence number, or -1 if it is lost (and counted)."""

    @abstractmethod
    def close(self) -> None:
        """Let go of memory and files. What is in the log stays there."""

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """Put down numbers of one step.

        Args:
            metrics: Names to Python or NumPy numbers, or tensors without dimensions; may be nested.
            step: Any whole number; None is one more than the last.
            epoch: Any number.

        Raises:
            InvalidCallError: ``metrics`` is no mapping, or ``step`` or ``epoch`` is no number.
            InvalidInputError: Under ``strict``, a value is no number. ``step`` has more than 64 bits.
        """
        if not isinstance(metrics, Mapping):
            raise InvalidCallError(
                f"metrics is a {type(metrics).__name__}", cure='give a dictionary, for example {"loss": 0.5}'
            )
        step = self.last_step + 1 if step is None else _whole(step)
        epoch = None if epoch is None else _real(epoch)
        # Once per name and object of complaint is enough: a bad value in a loop would flood the terminal.
        on_bad_value = refuse_bad_value if self._strict else self._tell_once
        plain = plain_metrics(metrics, on_bad_value, wait_for_device=self.deferred is None)
        self.last_step = step
        self._log_plain(plain, step, epoch)

    def _log_plain(self, plain: PlainMetrics, step: int, epoch: float | None) -> None:
        sequence = self._log_values(plain, step, epoch)
        if plain.big:
            self.append(BigIntegers(step=step, epoch=epoch, values=plain.big), step=step, epoch=epoch)
        if self.deferred is not None and sequence != NOT_KEPT:
            for name, tensor in plain.on_device:
                self.deferred(tensor, sequence, name)

    def _log_values(self, plain: PlainMetrics, step: int, epoch: float | None) -> int:
        record: tuple[Any, ...] = (1, step, epoch, monotonic_ns(), plain.values)
        if plain.on_device:
            record = (*record, [name for name, _ in plain.on_device])
        payload = self._encode(record)
        if len(payload) <= self.largest_payload:
            return self._publish(payload)
        return self._log_in_halves(plain, step, epoch)

    def _log_in_halves(self, plain: PlainMetrics, step: int, epoch: float | None) -> int:
        """Thousands of names make several records of one step."""
        names = list(plain.values)
        if len(names) < 2 or plain.on_device:
            self._tell_once(names[0][:80], "more than a record can hold", len(plain.values))
            return NOT_KEPT
        middle = len(names) // 2
        for part in (names[:middle], names[middle:]):
            sequence = self._log_values(PlainMetrics({name: plain.values[name] for name in part}), step, epoch)
        return sequence

    def append(self, event: Event, *, step: int | None = None, epoch: float | None = None) -> int:
        """Put down any other event.

        Returns:
            Its sequence number, or -1 if it could not be kept (``lost`` counts it).

        Raises:
            InvalidInputError: It is larger than a record of this log can be; the caller decides what becomes of it.
        """
        body = plain_body(body_of(event))
        payload = self._encode((event.kind, step, epoch, monotonic_ns(), body))
        if len(payload) > self.largest_payload:
            raise InvalidInputError(
                f"a {type(event).__name__} of {len(payload)} bytes does not fit a record of {self.largest_payload}",
                cure="log less at once, or log it as a file",
                kind="record-too-large",
            )
        return self._publish(payload)

    def _tell_once(self, name: str, kind: str, value: object) -> None:
        if name not in self._told:
            self._told.add(name)
            self._on_bad_value(name, kind, value)


def begin_log(log: RunLog, *, role: str, attempt: int, rank: int = 0, world_size: int = 1) -> None:
    """Write the two records that every log begins with: who writes it, and what time it is."""
    me = this_process()
    log.append(
        Identified(
            role=role,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            host=me.host,
            boot_id=me.boot_id,
            pid=me.pid,
            start_time=me.start_time,
        )
    )
    ClockKeeper(log).tick()


class ClockKeeper:
    """Puts down the clock again when it moved by more than 10 ms, and every minute; for the helper thread."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._said_at = 0
        self._offset = 0

    def tick(self) -> None:
        """Look at the clocks; append a ``ClockSet`` if it is due."""
        monotonic, wall = monotonic_ns(), time.time_ns()
        moved = abs(wall - monotonic - self._offset) > 10_000_000
        if moved or monotonic - self._said_at > 60_000_000_000:
            self._log.append(ClockSet(wall_ns=wall, monotonic_ns=monotonic))
            self._said_at, self._offset = monotonic, wall - monotonic


def _whole(step: Any) -> int:
    if isinstance(step, bool):
        raise InvalidCallError(f"step is {step!r}", cure="give a whole number, or None for one more than the last")
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidCallError(
            f"step is {step!r:.80}, a {type(step).__name__}",
            cure="give a whole number, or None for one more than the last",
        ) from None
    if not fits_64_bits(number) or number >= 1 << 63:
        raise InvalidInputError(f"step has {number.bit_length()} bits", cure="give a whole number of at most 63 bits")
    return number


def _real(epoch: Any) -> float:
    if isinstance(epoch, (int, float)) and not isinstance(epoch, bool):
        return epoch if type(epoch) in {int, float} and abs(epoch) < 2**63 else float(epoch)
    try:
        value = encode_hook(epoch)
    except NeedsWalk:
        value = False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidCallError(f"epoch is {epoch!r:.80}, a {type(epoch).__name__}", cure="give a number, or None")
    return value
