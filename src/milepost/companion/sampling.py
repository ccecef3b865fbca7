"""Who writes down, every few seconds, what a training uses?

One thread beside the first training process of each host. A sample that cannot be taken, or that the disk refuses, is
left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from milepost.companion.messages import Hello
from milepost.core.events import SystemSampled
from milepost.environment.sampling import SystemSampler
from milepost.runs.layout import RunLayout

__all__ = ["Sampling", "is_first_of_host"]

_SHORTEST = 0.5  # seconds of which a last sample can be taken


class Sampling:
    """Samples until it is stopped, and once more then, so that a short run has one too.

    Args:
        hello: Beside which process, and how often (the setting ``system_metrics_every``).
        record: Takes each sample.
    """

    def __init__(self, hello: Hello, record: Callable[[SystemSampled], object]) -> None:
        self._hello = hello
        self._every = hello.settings.get("system_metrics_every")
        self._record = record
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="milepost-sampling", daemon=True)

    def start(self) -> None:
        """Begin, if this process is asked for samples."""
        if self._every is not None and self._hello.facts and is_first_of_host(self._hello):
            self._thread.start()

    def stop(self) -> None:
        """Take the last sample; waits a second at most."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def _sample(self) -> None:
        layout = RunLayout.from_dict(self._hello.layout)
        sampler = SystemSampler(self._hello.pid, companion=os.getpid(), disk=layout.checkpoints)
        over = False
        while not over:
            began = time.monotonic()
            over = self._over.wait(self._every)
            if time.monotonic() - began >= min(_SHORTEST, self._every or _SHORTEST):
                self._record(SystemSampled(values=sampler.sample()))


def is_first_of_host(hello: Hello) -> bool:
    """Whether no process of a lower rank trains on the same host."""
    variables: Mapping[str, Any] = hello.facts.get("variables") or {}
    local = variables.get("LOCAL_RANK", variables.get("SLURM_LOCALID"))
    return hello.rank == 0 or str(local) == "0"
