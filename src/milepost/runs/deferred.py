"""How does a number that is still being computed on a device reach the log without making the training wait?

It is copied to pinned memory on the stream that computes it, behind everything queued before, and an event marks the
end of that copy. The helper thread looks whether the event has passed, and only then reads the number.

**On crash**: values still on their way are lost; their record stands, and says that they were awaited.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

from milepost.core.events import Deferred
from milepost.runs.recording import RunLog
from milepost.runs.values import encode_hook, fits_64_bits

__all__ = ["DeviceValues"]

_MOST_AT_ONCE = 100_000  # beyond it the device is so far behind that newer values are dropped, not memory filled


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    host: Any
    event: Any
    sequence: int
    name: str


class DeviceValues:
    """Values of one log that are still on a device. ``defer`` and ``poll`` may run in different threads."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._waiting: deque[_OnItsWay] = deque()

    def defer(self, tensor: Any, sequence: int, name: str) -> None:
        """Queue the copy of a tensor without dimensions; returns at once."""
        if len(self._waiting) >= _MOST_AT_ONCE:
            self._log.lost += 1
            return
        torch = sys.modules["torch"]  # whoever has a tensor has imported it
        value = tensor.detach()
        if value.device.type == "cuda":
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(value.device))
        else:
            # No events are to be had: a clone is queued on the device, and the helper thread waits for it.
            host, event = value.clone(), None
        self._waiting.append(_OnItsWay(host, event, sequence, name))

    def poll(self) -> None:
        """Log the values that have arrived; for the helper thread."""
        for _ in range(len(self._waiting)):
            one = self._waiting[0]
            if one.event is not None and not one.event.query():
                return  # streams may overtake each other, but a moment later is soon enough
            self._waiting.popleft()
            self._append(one)

    def drain(self) -> None:
        """Wait for all values; at the end of a run."""
        while self._waiting:
            one = self._waiting.popleft()
            if one.event is not None:
                one.event.synchronize()
            self._append(one)

    def _append(self, one: _OnItsWay) -> None:
        number = encode_hook(one.host.cpu())
        if isinstance(number, (int, float)) and (isinstance(number, float) or fits_64_bits(number)):
            self._log.append(Deferred(sequence=one.sequence, name=one.name, value=number))
