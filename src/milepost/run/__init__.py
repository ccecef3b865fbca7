"""A live run: log to it, save, resume, end it."""

from milepost.run.disabled import DisabledRun
from milepost.run.live import Run
from milepost.run.worker import WorkerRun

__all__ = ["DisabledRun", "Run", "WorkerRun"]
