"""What do the machine and the processes of a training use at this moment?

Numbers of psutil, and of NVML where ``nvidia-ml-py`` is installed. What cannot be read (a process that is gone, a file
that is not ours, a driver without an answer) is left out; nothing here fails a run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["SystemSampler"]

#: What psutil and /proc raise where a process is gone, or is somebody else's.
_GONE = (psutil.Error, OSError, ValueError)


class SystemSampler:
    """Takes samples; rates are those since the sample before.

    Args:
        pid: The training process. Its children count with it, the companion and its children do not.
        companion: The process that works beside it, shown apart; the same as ``pid`` where there is none.
        disk: A folder whose disk may fill up.
    """

    def __init__(self, pid: int, *, companion: int, disk: Path) -> None:
        self._pid = pid
        self._companion = companion
        self._disk = disk
        self._taken_at = time.monotonic()
        self._counters: dict[str, float] = {}
        self._cpu_seconds: dict[tuple[int, float], float] = {}
        self._limit = _memory_limit(pid)
        self._gpus = _Gpus()
        self.sample()

    def sample(self) -> dict[str, float]:
        """Values by name; a name ends with its unit.

        The CPU of processes is in percent of one core, that of the machine in percent of all cores. Memory that
        processes share counts in each of them.
        """
        now = time.monotonic()
        seconds, self._taken_at = max(now - self._taken_at, 1e-3), now
        values: dict[str, float] = {}
        for measure in (self._machine, self._free_disk, self._gpus.measure):
            with suppress(*_GONE):
                values |= measure()
        values |= self._processes(seconds)
        for name, total in self._totals().items():
            before = self._counters.get(name)
            self._counters[name] = total
            if before is not None:
                values[f"{name}_per_second"] = max(0.0, total - before) / seconds
        return {f"system/{name}": float(value) for name, value in values.items()}

    def _machine(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        values = {
            "cpu_percent": psutil.cpu_percent(None),
            "memory_used_bytes": memory.total - memory.available,
            "memory_available_bytes": memory.available,
        }
        return values if self._limit is None else values | {"memory_limit_bytes": self._limit}

    def _free_disk(self) -> dict[str, float]:
        return {"disk_free_bytes": psutil.disk_usage(str(_existing(self._disk))).free}

    def _processes(self, seconds: float) -> dict[str, float]:
        seen: dict[tuple[int, float], float] = {}
        groups = {"process": [*_tree(self._pid, without=self._companion)]}
        if self._companion != self._pid:
            groups["companion"] = [*_tree(self._companion)]
        values: dict[str, float] = {}
        for group, pids in groups.items():
            memory, busy = 0.0, 0.0
            for pid in pids:
                with suppress(*_GONE):
                    process = psutil.Process(pid)
                    key = (pid, process.create_time())
                    used = process.cpu_times()
                    seen[key] = used.user + used.system
                    busy += max(0.0, seen[key] - self._cpu_seconds.get(key, 0.0))
                    memory += process.memory_info().rss
            if memory:
                values |= {f"{group}_cpu_percent": 100 * busy / seconds, f"{group}_memory_bytes": memory}
        self._cpu_seconds = seen
        return values

    def _totals(self) -> dict[str, float]:
        """Counters that only grow, of which a rate is made."""
        totals: dict[str, float] = {}
        with suppress(*_GONE):
            disk = psutil.disk_io_counters(nowrap=False)
            if disk is not None:
                totals |= {"disk_read_bytes": disk.read_bytes, "disk_write_bytes": disk.write_bytes}
        with suppress(*_GONE):
            cards = psutil.net_io_counters(pernic=True, nowrap=False)
            outward = [card for name, card in cards.items() if not name.startswith("lo")]
            totals["network_sent_bytes"] = sum(card.bytes_sent for card in outward)
            totals["network_received_bytes"] = sum(card.bytes_recv for card in outward)
        return totals


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it: a checkpoint folder is made at the first save."""
    return next((one for one in (folder, *folder.parents) if one.exists()), Path.cwd())


# -------------------------------------------------------------------- processes


def _tree(pid: int, *, without: int = 0) -> Iterator[int]:
    """A process and all its descendants, ``without`` and its own left out."""
    yield pid
    for child in _children(pid):
        if child != without:
            yield from _tree(child, without=without)


def _children(pid: int) -> list[int]:
    # The kernel's own list: psutil reads every process of the machine for it.
    threads = f"/proc/{pid}/task"
    if not os.path.exists(f"{threads}/{pid}/children"):
        with suppress(*_GONE):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    with suppress(*_GONE):
        for thread in os.listdir(threads):
            with suppress(OSError), open(f"{threads}/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def _memory_limit(pid: int) -> int | None:
    """Bytes that the control groups above a process allow it; None where none does, or not on Linux."""
    limits: list[int] = []
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                limits += _limits(Path("/sys/fs/cgroup"), path, "memory.max")
            elif "memory" in controllers.split(","):
                limits += _limits(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
        machine = psutil.virtual_memory().total
        return min((limit for limit in limits if limit < machine), default=None)
    return None


def _limits(mount: Path, path: str, name: str) -> Iterator[int]:
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):
            yield int((folder / name).read_text(encoding="ascii"))
        if folder == mount:
            return


# -------------------------------------------------------------------- GPUs


class _Gpus:
    """NVIDIA's, all that this process may see, by NVML's numbers; none where package or driver is absent."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            import pynvml

            self._nvml: Any = pynvml
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        except Exception:  # noqa: BLE001 - a driver that is absent, of another version, or broken
            self._handles = []

    def measure(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for number, handle in enumerate(self._handles):
            for name, read in self._readings(handle).items():
                with suppress(self._nvml.NVMLError):
                    values[f"gpu{number}/{name}"] = read()
        return values

    def _readings(self, handle: Any) -> Mapping[str, Callable[[], float]]:
        nvml = self._nvml
        return {
            "utilization_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory_total_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
