"""A disk that is full: training goes on, it is said once, shown as a state, and cured when there is room again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script

pytestmark = pytest.mark.linux

HEAD = """
    import os, sys, time
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False)
"""


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small disk of its own at ``place``."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    with mounted(tmp_path / "disk", "size=12m") as place:
        yield place


def fill(disk: Path) -> Path:
    """Leave not one free block."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_refusal(line: str) -> bool:
    cure = ": enable compression, lower max_checkpoints or free disk space"
    return line.startswith("refused no space left on device") and line.endswith(cure)


def notices(folder: Path) -> list[str]:
    (run,) = milepost.open(folder).runs()
    return [f"{notice.source}/{notice.topic}" for notice in run.notices]


def test_a_full_log_disk_stops_nothing_is_said_once_and_loses_nothing_that_fits_the_memory(tmp_path, small_disk):
    script = Script(
        tmp_path,
        HEAD
        + """
    run = milepost.start("full", metrics_dir="disk/metrics", **quiet)
    run.log({"loss": 0.0}, 0)
    print("started", flush=True)
    sys.stdin.readline()
    for step in range(1, 100_000):
        run.log({"loss": float(step), "accuracy": 0.5}, step)
    heard = []
    forget = run._companion._forget_segments
    run._companion._forget_segments = lambda position: (heard.append(position), forget(position))
    while len(heard) < 4:  # the companion has tried again for some seconds
        time.sleep(0.05)
    print("logged", flush=True)
    sys.stdin.readline()
    for step in range(100_000, 100_100):
        run.log({"loss": float(step)}, step)
    sys.stdin.readline()
    assert run._log.lost == 0
    run.end({"final": 1.0})
    """,
        stdin=True,
    )
    script.wait_for_line("started")
    until(lambda: len(milepost.open(tmp_path).runs()[0].metrics()) == 1)
    ballast = fill(small_disk)
    script.tell("\n")
    script.wait_for_line("logged")
    until(lambda: "log/disk" in notices(tmp_path))
    ballast.unlink()
    script.tell("\n")
    until(lambda: notices(tmp_path) == [])
    script.tell("\n")
    _, err = script.finish()
    assert script.exit_code == 0, err
    said = [line for line in err.splitlines() if "no space left on device" in line or "takes the run log" in line]
    assert len(said) == 2, err
    assert "it is kept in memory meanwhile" in said[0]
    assert "takes the run log again" in said[1]
    assert "Traceback" not in err
    (run,) = milepost.open(tmp_path).runs()
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(100_100))
    assert run.summary == {"final": 1.0}
    assert run.history.damage == []


def test_a_full_disk_under_everything_stops_nothing_either(tmp_path, small_disk):
    script = Script(
        tmp_path,
        HEAD
        + """
    import torch
    model = torch.nn.Linear(64, 64)
    run = milepost.start("full", root="disk", **quiet)
    run.log({"loss": 0.0}, 0)
    print("started", flush=True)
    sys.stdin.readline()
    for step in range(1, 20_000):
        run.log({"loss": float(step)}, step)
    run.log_text("long", "x" * 100_000)
    run.save_checkpoint(model, step=1)
    try:
        run.wait()
        print("saved")
    except milepost.StorageError as error:
        print("refused", error)
    print("logged", flush=True)
    sys.stdin.readline()
    run.save_checkpoint(model, step=2)
    run.wait()
    run.end()
    """,
        stdin=True,
    )
    script.wait_for_line("started")
    until(lambda: len(milepost.open(small_disk).runs()[0].metrics()) == 1)
    ballast = fill(small_disk)
    script.tell("\n")
    seen = script.wait_for_line("logged")
    assert sum(is_refusal(line) for line in seen) == 1, seen
    ballast.unlink()
    script.tell("\n")
    _, err = script.finish()
    assert script.exit_code == 0, err
    assert "Traceback" not in err
    (run,) = milepost.open(small_disk).runs()
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(20_000))
    assert [info.step for info in run.checkpoints] == [2]
    assert (small_disk / "experiments" / run.id / "summary.json").exists()
    assert [notice.message for notice in run.notices if notice.source in {"log", "checkpoint"}] == []


def test_a_full_checkpoint_disk_fails_that_save_and_not_the_next(tmp_path, small_disk):
    script = Script(
        tmp_path,
        HEAD
        + """
    import torch
    model = torch.nn.Linear(1024, 1024)
    run = milepost.start("full", checkpoint_dir="disk/checkpoints", **quiet)
    os.stat(run.save_checkpoint(model, step=1, pin=True))
    print("started", flush=True)
    sys.stdin.readline()
    failed = run.save_checkpoint(model, step=2)
    print("returned", failed)
    for call in (run.wait, lambda: open(failed)):
        try:
            call()
            print("accepted")
        except milepost.StorageError as error:
            print("refused", error)
    print("failed", flush=True)
    sys.stdin.readline()
    os.stat(run.save_checkpoint(model, step=3))
    run.wait()
    print("saved", flush=True)
    sys.stdin.readline()
    run.end()
    """,
        stdin=True,
    )
    script.wait_for_line("started")
    ballast = fill(small_disk)
    script.tell("\n")
    seen = script.wait_for_line("failed")
    assert sum(is_refusal(line) for line in seen) == 2, seen
    until(lambda: "checkpoint/unprotected" in notices(tmp_path))
    (run,) = milepost.open(tmp_path).runs()
    assert run.notices[0].since_step == 2
    ballast.unlink()
    script.tell("\n")
    script.wait_for_line("saved")
    until(lambda: notices(tmp_path) == [])
    script.tell("\n")
    _, err = script.finish()
    assert script.exit_code == 0, err
    assert err.count("training is unprotected") == 1
    assert "Traceback" not in err
    (run,) = milepost.open(tmp_path).runs()
    assert [info.step for info in run.checkpoints] == [1, 3]
    milepost.load(run.checkpoints[0].path)
    assert [name for name in os.listdir(small_disk / "checkpoints") if name.endswith(".tmp")] == []


FAULT = (
    HEAD
    + """
    import resource, torch
    model = torch.nn.Linear(64, 64)
    run = milepost.start("faults", **quiet)
    def shown():
        return [f"{n.source}/{n.topic}" for n in milepost.open(".").runs()[0].notices]
    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    def limit(which, value, pid=os.getpid()):
        resource.prlimit(pid, which, (value, resource.prlimit(pid, which)[1]))
    def save(step):
        path = run.save_checkpoint(model, step=step)
        try:
            run.wait()
        except milepost.StorageError as error:
            print(error.kind, bool(error.cure))
    os.stat(run.save_checkpoint(model, step=1))
    run.wait()
    for step in (2, 3):
        run.log({"loss": 1.0}, step)
        BREAK
        save(step)
        RELEASE
    until(lambda: shown() == ["checkpoint/unprotected"])
    MEND
    os.stat(run.save_checkpoint(model, step=4))
    run.wait()
    until(lambda: shown() == [])
    run.end()
    """
)
#: How a save is hindered, what must be undone before anybody can look, and before the next save, and the error's kind.
FAULTS = {
    "a file where the folder was": (
        'os.path.isdir("checkpoints") and (os.rename("checkpoints", "away"), open("checkpoints", "w").close())',
        "pass",
        'os.unlink("checkpoints"); os.rename("away", "checkpoints")',
        "storage",
    ),
    "no descriptors": (
        'limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1)',
        "limit(resource.RLIMIT_NOFILE, 1024)",
        "pass",
        "too-many-files",
    ),
    "no file as large": (
        "limit(resource.RLIMIT_FSIZE, 12288, run._companion.pid)",
        "pass",
        "limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY, run._companion.pid)",
        "file-too-large",
    ),
}


#: The same for a disk under the folder of checkpoints; first how it is mounted.
DISK_FAULTS = {
    "read only": (
        "size=12m",
        'os.system("mount -o remount,ro checkpoints")',
        "pass",
        'os.system("mount -o remount,rw checkpoints")',
        "read-only",
    ),
    "no inodes": (
        "size=12m,nr_inodes=64",
        "os.system('for i in $(seq 64); do : > checkpoints/$i.txt; done 2> /dev/null')",
        "pass",
        "os.system('rm checkpoints/*.txt')",
        "disk-full",
    ),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_refuses_every_new_file_is_said_once_shown_and_cured_by_the_next_good_save(tmp_path, fault):
    options, *how = DISK_FAULTS[fault]
    with mounted(tmp_path / "checkpoints", options):
        refuse_saves(tmp_path, *how)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_refuses_a_checkpoint_is_said_once_shown_and_cured_by_the_next_good_save(tmp_path, fault):
    refuse_saves(tmp_path, *FAULTS[fault])


def refuse_saves(tmp_path: Path, break_it: str, release: str, mend: str, kind: str) -> None:
    script = Script(tmp_path, FAULT.replace("BREAK", break_it).replace("RELEASE", release).replace("MEND", mend))
    out, err = script.finish()
    assert script.exit_code == 0, err
    assert out.splitlines() == [f"{kind} True"] * 2
    said = [line for line in err.splitlines() if "unprotected" in line]
    assert len(said) == 1, err
    assert "Traceback" not in err
    (run,) = milepost.open(tmp_path).runs()
    assert [info.step for info in run.checkpoints] == [1, 4]
    for info in run.checkpoints:
        milepost.load(info.path)
    assert list(run.series("loss").step) == [2, 3]
