from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from milepost.environment import sampling
from milepost.environment.sampling import SystemSampler

BUSY = "import sys\nprint('ready', flush=True)\nwhile True: pass"
IDLE = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print("ready", flush=True)
input()
"""


def started(code: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_sample_names_units_and_holds_numbers_of_machine_processes_disk_and_network(tmp_path):
    values = SystemSampler(os.getpid(), companion=0, disk=tmp_path / "not" / "there").sample()
    assert all(isinstance(value, float) for value in values.values())
    expected = {"cpu_percent", "memory_used_bytes", "memory_available_bytes", "disk_free_bytes"}
    expected |= {"process_cpu_percent", "process_memory_bytes"}
    assert {f"system/{name}" for name in expected} <= values.keys()
    assert "system/companion_memory_bytes" not in values
    assert values["system/disk_free_bytes"] > 0


def test_children_count_with_the_training_and_the_companion_is_shown_apart(tmp_path):
    companion, worker = started(BUSY), started(IDLE)
    try:
        sampler = SystemSampler(os.getpid(), companion=companion.pid, disk=tmp_path)
        while True:
            values = sampler.sample()
            if values["system/companion_cpu_percent"] > 0:
                break
        processes = [os.getpid(), worker.pid, *(child.pid for child in psutil.Process(worker.pid).children())]
        assert len(processes) == 3
        total = sum(psutil.Process(pid).memory_info().rss for pid in processes)
        assert abs(values["system/process_memory_bytes"] - total) < 0.2 * total
        alone = psutil.Process(companion.pid).memory_info().rss
        assert abs(values["system/companion_memory_bytes"] - alone) < 0.2 * alone
    finally:
        end(companion)
        end(worker)


def test_a_process_that_is_gone_is_left_out(tmp_path):
    worker = started(IDLE)
    sampler = SystemSampler(worker.pid, companion=worker.pid, disk=tmp_path)
    assert "system/process_memory_bytes" in sampler.sample()
    end(worker)
    values = sampler.sample()
    assert "system/process_memory_bytes" not in values
    assert "system/cpu_percent" in values


def test_the_children_are_the_same_whichever_way_they_are_found(monkeypatch):
    worker = started(IDLE)
    try:
        kernels = sampling._children(os.getpid())
        monkeypatch.setattr(os.path, "exists", lambda path: False)
        assert sorted(kernels) == sorted(sampling._children(os.getpid()))
        assert worker.pid in kernels
    finally:
        end(worker)


def test_the_smallest_limit_of_the_groups_above_counts(tmp_path):
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert list(sampling._limits(Path(tmp_path), "/job/step", "memory.max")) == [1000, 5000]
